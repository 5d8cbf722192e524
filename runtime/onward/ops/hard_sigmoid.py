from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("HardSigmoid", since=(1, 6, 22))
class HardSigmoid(Op):
    """Y = max(0, min(1, alpha · X + beta))."""

    alpha: float = 0.2
    beta: float = 0.5

    @widened
    def kernel(self, X: Array) -> Array:
        return np.clip(self.alpha * X + self.beta, 0, 1)

    def element(self, X: Expression) -> Expression:
        return (X * self.alpha + self.beta).apply("min", 1.0).apply("max", 0.0)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        sloped = g.And(g.Greater(y, 0.0), g.Less(y, 1.0))
        return (g.Where(sloped, g.Mul(dy, self.alpha), 0.0),)
