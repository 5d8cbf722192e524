from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, dims_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import working_dtype


@op("RMSNormalization", since=23)
class RMSNormalization(Op):
    """Y = X / sqrt(mean(X²) + epsilon) · scale, the mean over the axes from `axis` on.

    The mean is computed in X's type, float32 for 16-bit floats.
    """

    axis: int = -1
    epsilon: float = 1e-5
    stash_type: int = int(ir.DataType.FLOAT)

    def kernel(self, X: Array, scale: Array) -> Array:
        axes = tuple(range(self.axis % X.ndim, X.ndim))
        work = working_dtype(X.dtype)
        x = X.astype(work, copy=False)
        square = np.mean(np.square(x), axis=axes, keepdims=True)
        y = x / np.sqrt(square + work.type(self.epsilon)) * scale
        return y.astype(scale.dtype, copy=False)

    def lower(
        self, static: Static, outputs: Values, X: ir.Value, scale: ir.Value
    ) -> requests.RMSNormalization:
        return requests.RMSNormalization(outputs[0], X, scale, self.axis, self.epsilon)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value, scale: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        dims = dims_of(X)
        if dims is None:
            raise UnsupportedError("the gradient of RMSNormalization needs the rank of X")
        axes = list(range(self.axis % len(dims), len(dims)))
        square = g.ReduceMean(g.Mul(X, X), axes, keepdims=1)
        inverse = g.Reciprocal(g.Sqrt(g.Add(square, self.epsilon)))
        normalized, d = g.Mul(X, inverse), g.Mul(dy, scale)
        along = g.Mul(normalized, g.ReduceMean(g.Mul(d, normalized), axes, keepdims=1))
        return g.Mul(g.Sub(d, along), inverse), g.Mul(dy, normalized)
