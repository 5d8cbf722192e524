from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("HardSwish", since=(14, 22))
class HardSwish(Op):
    """Y = X · max(0, min(1, X / 6 + 1 / 2))."""

    @widened
    def kernel(self, X: Array) -> Array:
        return X * np.clip(X / 6 + 0.5, 0, 1)

    def element(self, X: Expression) -> Expression:
        return X * (X * (1 / 6) + 0.5).apply("min", 1.0).apply("max", 0.0)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        between = g.Add(g.Mul(X, 1.0 / 3.0), 0.5)
        slope = g.Where(g.LessOrEqual(X, -3.0), 0.0, g.Where(g.Less(X, 3.0), between, 1.0))
        return (g.Mul(dy, slope),)
