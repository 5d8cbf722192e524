from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("Elu", since=(1, 6, 22))
class Elu(Op):
    """Y = X above zero, else alpha · (exp(X) - 1)."""

    alpha: float = 1.0

    @widened
    def kernel(self, X: Array) -> Array:
        return np.where(X > 0, X, self.alpha * np.expm1(np.minimum(X, 0)))

    def element(self, X: Expression) -> Expression:
        return X.apply("gt", 0.0).apply("select", X, X.apply("min", 0.0).expm1() * self.alpha)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Where(g.Greater(X, 0.0), dy, g.Mul(dy, g.Add(y, self.alpha))),)
