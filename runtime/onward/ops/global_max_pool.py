from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, dims_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._window import Extents, Geometry, everything


@op("GlobalMaxPool", since=(1, 22))
class GlobalMaxPool(Op):
    """Y[n, c] = the largest of X[n, c, *] over all spatial axes, which are kept with extent 1.

    The gradient goes to the first maximum in row-major order.
    """

    def kernel(self, X: Array) -> Array:
        return np.max(X, axis=tuple(range(2, X.ndim)), keepdims=True)

    def pooling(self, spatial: Extents) -> Geometry:
        """The geometry of the one window over everything."""
        return everything(spatial)

    def lower(self, static: Static, outputs: Values, X: ir.Value) -> requests.MaxPool:
        return requests.MaxPool(outputs[0], X, self.pooling(static.shape(X)[2:]))

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value | None, ...]:
        spatial = (dims_of(X) or (None, None, None))[2:]
        static = [d for d in spatial if isinstance(d, int)]
        if len(static) == len(spatial):
            return (g.onward.MaxPoolGrad(dy, X, kernel_shape=static),)
        count = g.ReduceProd(g.Shape(X, start=2), keepdims=0)
        positions = g.Range(g.const(0), count, g.const(1))
        first = g.ArgMax(g.Reshape(X, [0, 0, -1]), axis=2, keepdims=1)
        dx = g.Where(g.Equal(first, positions), g.Reshape(dy, [0, 0, 1]), 0.0)
        return (g.reshape_like(dx, X),)
