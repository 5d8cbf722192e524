from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Shrink", since=9)
class Shrink(Op):
    """input + bias below −lambd, input − bias above lambd, else 0; slope 0 at ±lambd."""

    bias: float = 0.0
    lambd: float = 0.5

    def kernel(self, input: Array) -> Array:
        # in float64, so that unsigned and small integers compare and shift as numbers
        x = input if input.dtype.kind == "f" else input.astype(np.float64)
        low, high = x < -self.lambd, x > self.lambd
        shifted = np.where(low, x + x.dtype.type(self.bias), x - x.dtype.type(self.bias))
        return np.where(low | high, shifted, x.dtype.type(0)).astype(input.dtype)

    def element(self, input: Expression) -> Expression:
        below, above = input.apply("lt", -self.lambd), input.apply("gt", self.lambd)
        inside = above.apply("select", input - self.bias, 0.0)
        return below.apply("select", input + self.bias, inside)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Where(g.Or(g.Less(input, -self.lambd), g.Greater(input, self.lambd)), dy, 0.0),)
