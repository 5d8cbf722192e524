from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("Softsign", since=(1, 22))
class Softsign(Op):
    """Y = X / (1 + |X|)."""

    @widened
    def kernel(self, input: Array) -> Array:
        return input / (1 + np.abs(input))

    def element(self, input: Expression) -> Expression:
        return input / (input.apply("abs") + 1.0)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        scale = g.Add(g.Abs(input), 1.0)
        return (g.Div(dy, g.Mul(scale, scale)),)
