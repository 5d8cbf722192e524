from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Acosh", since=(9, 22))
class Acosh(Op):
    """The inverse hyperbolic cosine."""

    def kernel(self, input: Array) -> Array:
        return np.arccosh(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("acosh")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Div(dy, g.Sqrt(g.Sub(g.Mul(input, input), 1.0))),)
