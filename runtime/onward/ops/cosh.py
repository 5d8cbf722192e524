from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Cosh", since=(9, 22))
class Cosh(Op):
    """The hyperbolic cosine."""

    def kernel(self, input: Array) -> Array:
        return np.cosh(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("cosh")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Mul(dy, g.Sinh(input)),)
