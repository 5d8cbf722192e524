from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, dims_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._floats import widened


@op("MatMul", since=(1, 9, 13))
class MatMul(Op):
    """Y = A · B as numpy.matmul: batches broadcast, vectors are promoted and the promoted axis dropped."""

    @widened
    def kernel(self, A: Array, B: Array) -> Array:
        return np.matmul(A, B)

    def lower(self, static: Static, outputs: Values, A: ir.Value, B: ir.Value) -> requests.Product:
        return requests.Product(outputs[0], A, B)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, A: ir.Value, B: ir.Value
    ) -> tuple[ir.Value, ...]:
        a, b = dims_of(A), dims_of(B)
        if a is None or b is None:
            raise UnsupportedError("the gradient of MatMul needs the ranks of its operands")
        if len(a) == 1 and len(b) == 1:
            return g.Mul(dy, B), g.Mul(dy, A)
        # A vector stands for a matrix of one row (A) or one column (B), whose axis the product drops.
        rows = g.Unsqueeze(dy, [-2]) if len(a) == 1 else dy
        rows = g.Unsqueeze(rows, [-1]) if len(b) == 1 else rows
        left = g.Unsqueeze(A, [0]) if len(a) == 1 else A
        right = g.Unsqueeze(B, [1]) if len(b) == 1 else B
        dA = g.MatMul(rows, _transposed(g, right))
        if len(b) == 2 and len(a) > 2:
            # One product over all rows instead of one each and their sum.
            flat = g.Flatten(left, axis=len(a) - 1), g.Flatten(rows, axis=len(a) - 1)
            return dA, g.MatMul(_transposed(g, flat[0]), flat[1])
        dB = g.MatMul(_transposed(g, left), rows)
        if len(a) == 1:
            dA = g.Squeeze(dA, [-2])
        if len(b) == 1:
            dB = g.Squeeze(dB, [-1])
        return dA, dB


def _transposed(g: Builder, x: ir.Value) -> ir.Value:
    rank = len(dims_of(x) or ())
    return g.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])
