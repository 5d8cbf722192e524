from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Tanh", since=(1, 6, 13))
class Tanh(Op):
    """The hyperbolic tangent."""

    def kernel(self, input: Array) -> Array:
        return np.tanh(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("tanh")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Mul(dy, g.Sub(1.0, g.Mul(y, y))),)
