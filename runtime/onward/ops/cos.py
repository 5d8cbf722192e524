from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Cos", since=(7, 22))
class Cos(Op):
    """The cosine."""

    def kernel(self, input: Array) -> Array:
        return np.cos(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("cos")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Neg(g.Mul(dy, g.Sin(input))),)
