from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Asin", since=(7, 22))
class Asin(Op):
    """The inverse sine."""

    def kernel(self, input: Array) -> Array:
        return np.arcsin(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("asin")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Div(dy, g.Sqrt(g.Sub(1.0, g.Mul(input, input)))),)
