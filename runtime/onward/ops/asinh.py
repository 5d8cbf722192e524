from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Asinh", since=(9, 22))
class Asinh(Op):
    """The inverse hyperbolic sine."""

    def kernel(self, input: Array) -> Array:
        return np.arcsinh(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("asinh")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Div(dy, g.Sqrt(g.Add(g.Mul(input, input), 1.0))),)
