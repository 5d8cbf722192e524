from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Exp", since=(1, 6, 13))
class Exp(Op):
    """The exponential."""

    def kernel(self, input: Array) -> Array:
        return np.exp(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("exp")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Mul(dy, y),)
