from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Acos", since=(7, 22))
class Acos(Op):
    """The inverse cosine."""

    def kernel(self, input: Array) -> Array:
        return np.arccos(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("acos")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Neg(g.Div(dy, g.Sqrt(g.Sub(1.0, g.Mul(input, input))))),)
