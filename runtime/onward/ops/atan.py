from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Atan", since=(7, 22))
class Atan(Op):
    """The inverse tangent."""

    def kernel(self, input: Array) -> Array:
        return np.arctan(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("atan")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Div(dy, g.Add(g.Mul(input, input), 1.0)),)
