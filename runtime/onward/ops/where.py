from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Where", since=(9, 16))
class Where(Op):
    """output = X where condition holds, else Y; broadcast as in NumPy."""

    def kernel(self, condition: Array, X: Array, Y: Array) -> Array:
        return np.where(condition, X, Y)

    def element(self, condition: Expression, X: Expression, Y: Expression) -> Expression:
        return condition.apply("select", X, Y)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, condition: ir.Value, X: ir.Value, Y: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return None, g.Where(condition, dy, 0.0), g.Where(condition, 0.0, dy)
