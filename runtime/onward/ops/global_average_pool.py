from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, dims_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import working_dtype
from onward.ops._window import everything, shaped_like


@op("GlobalAveragePool", since=(1, 22))
class GlobalAveragePool(Op):
    """Y[n, c] = the mean of X[n, c, *] over all spatial axes, which are kept with extent 1."""

    def kernel(self, X: Array) -> Array:
        axes = tuple(range(2, X.ndim))
        return np.mean(X, axis=axes, keepdims=True, dtype=working_dtype(X.dtype)).astype(X.dtype, copy=False)

    def lower(self, static: Static, outputs: Values, X: ir.Value) -> requests.AveragePool:
        return requests.AveragePool(outputs[0], X, everything(static.shape(X)[2:]), False)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value | None, ...]:
        dims = dims_of(X)
        if dims is None:
            raise UnsupportedError("the gradient of GlobalAveragePool needs the rank of X")
        spread = g.Expand(g.Div(dy, g.size(X, range(2, len(dims)))), g.shape(X))
        return (shaped_like(spread, X),)
