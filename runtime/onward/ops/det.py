from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, dims_of, op
from onward.ops._floats import widened


@op("Det", since=(11, 22))
class Det(Op):
    """The determinant of each matrix of the last two axes.

    The gradient is the matrix of cofactors, each the determinant of a minor: it holds for singular matrices
    too, and takes n² determinants.
    """

    @widened
    def kernel(self, X: Array) -> Array:
        return np.asarray(np.linalg.det(X), X.dtype)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        dims = dims_of(X)
        n = dims[-1] if dims is not None else None
        if dims is None or not isinstance(n, int):
            raise UnsupportedError(f"the gradient of Det needs the size of the matrices of {X.name!r}")
        if n < 2:  # the minor of a single number is the empty matrix, whose determinant is 1
            return (g.Expand(g.Unsqueeze(dy, [-2, -1]), g.Shape(X)),)
        others = np.array([[j for j in range(n) if j != i] for i in range(n)], np.int64).reshape(n, n - 1)
        rank = len(dims)
        rows = g.Gather(X, g.const(others), axis=rank - 2)  # …, row left out, rows, columns
        both = g.Gather(rows, g.const(others), axis=rank)  # …, row left out, rows, column left out, columns
        lead = list(range(rank - 2))
        minors = g.Transpose(both, perm=[*lead, rank - 2, rank, rank - 1, rank + 1])
        signs = np.where(np.add.outer(range(n), range(n)) % 2, -1.0, 1.0)
        cofactors = g.Mul(g.Det(minors), g.const(signs, X.dtype))
        return (g.Mul(g.Unsqueeze(dy, [-2, -1]), cofactors),)
