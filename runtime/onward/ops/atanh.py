from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Atanh", since=(9, 22))
class Atanh(Op):
    """The inverse hyperbolic tangent."""

    def kernel(self, input: Array) -> Array:
        return np.arctanh(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("atanh")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Div(dy, g.Sub(1.0, g.Mul(input, input))),)
