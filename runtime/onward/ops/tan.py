from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Tan", since=(7, 22))
class Tan(Op):
    """The tangent."""

    def kernel(self, input: Array) -> Array:
        return np.tan(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("tan")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Mul(dy, g.Add(g.Mul(y, y), 1.0)),)
