from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("ThresholdedRelu", since=(10, 22))
class ThresholdedRelu(Op):
    """Y = X where X > alpha, else 0."""

    alpha: float = 1.0

    @widened
    def kernel(self, X: Array) -> Array:
        return np.where(X > self.alpha, X, 0)

    def element(self, X: Expression) -> Expression:
        return X.apply("gt", self.alpha).apply("select", X, 0.0)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Where(g.Greater(X, self.alpha), dy, 0.0),)
