from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Relu", since=(1, 6, 13, 14))
class Relu(Op):
    """Y = max(0, X); slope 0 at 0."""

    def kernel(self, X: Array) -> Array:
        return np.maximum(X, X.dtype.type(0))

    def element(self, X: Expression) -> Expression:
        return X.apply("relu")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Where(g.Greater(y, 0.0), dy, 0.0),)
