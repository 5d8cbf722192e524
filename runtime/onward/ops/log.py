from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Log", since=(1, 6, 13))
class Log(Op):
    """The natural logarithm."""

    def kernel(self, input: Array) -> Array:
        return np.log(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("log")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Div(dy, input),)
