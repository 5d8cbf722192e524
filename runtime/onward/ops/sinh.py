from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Sinh", since=(9, 22))
class Sinh(Op):
    """The hyperbolic sine."""

    def kernel(self, input: Array) -> Array:
        return np.sinh(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("sinh")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Mul(dy, g.Cosh(input)),)
