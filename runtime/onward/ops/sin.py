from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Sin", since=(7, 22))
class Sin(Op):
    """The sine."""

    def kernel(self, input: Array) -> Array:
        return np.sin(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("sin")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Mul(dy, g.Cos(input)),)
