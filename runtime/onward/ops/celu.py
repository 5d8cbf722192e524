from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("Celu", since=(12, 28))
class Celu(Op):
    """Y = max(0, X) + min(0, alpha · (exp(X / alpha) - 1))."""

    alpha: float = 1.0

    @widened
    def kernel(self, X: Array) -> Array:
        return np.maximum(X, 0) + np.minimum(self.alpha * np.expm1(X / self.alpha), 0)

    def element(self, X: Expression) -> Expression:
        below = (X.apply("min", 0.0) / self.alpha).expm1() * self.alpha
        return X.apply("gt", 0.0).apply("select", X, below)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        below = g.Mul(dy, g.Exp(g.Mul(X, 1.0 / self.alpha)))
        return (g.Where(g.Greater(X, 0.0), dy, below),)
