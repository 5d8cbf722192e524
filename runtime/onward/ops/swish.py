from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("Swish", since=24)
class Swish(Op):
    """Y = X · sigmoid(alpha · X)."""

    alpha: float = 1.0

    @widened
    def kernel(self, X: Array) -> Array:
        z = self.alpha * X
        return X * (np.exp(np.minimum(z, 0)) / (1 + np.exp(-np.abs(z))))

    def element(self, X: Expression) -> Expression:
        return X * (X * self.alpha).apply("sigmoid")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        s = g.Sigmoid(g.Mul(X, self.alpha))
        return (g.Mul(dy, g.Add(s, g.Mul(g.Mul(y, self.alpha), g.Sub(1.0, s)))),)
