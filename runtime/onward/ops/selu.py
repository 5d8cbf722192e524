from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("Selu", since=(6, 22))
class Selu(Op):
    """Y = gamma · X above zero, else gamma · alpha · (exp(X) - 1)."""

    alpha: float = 1.67326319217681884765625
    gamma: float = 1.05070102214813232421875

    @widened
    def kernel(self, X: Array) -> Array:
        return self.gamma * np.where(X > 0, X, self.alpha * np.expm1(np.minimum(X, 0)))

    def element(self, X: Expression) -> Expression:
        below = X.apply("min", 0.0).expm1() * self.alpha
        return X.apply("gt", 0.0).apply("select", X, below) * self.gamma

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        below = g.Add(y, self.gamma * self.alpha)
        return (g.Mul(dy, g.Where(g.Greater(X, 0.0), self.gamma, below)),)


@op("Selu", since=1)
class Selu1(Op):
    """Selu with rounder defaults."""

    alpha: float = 1.6732
    gamma: float = 1.0507

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        return g.Selu(X, alpha=self.alpha, gamma=self.gamma)
