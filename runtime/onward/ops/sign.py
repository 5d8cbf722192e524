from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Sign", since=(9, 13))
class Sign(Op):
    """-1, 0 or 1, after the sign of each element."""

    def kernel(self, input: Array) -> Array:
        return np.sign(input)

    def element(self, input: Expression) -> Expression:
        return input.apply("sign")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[None, ...]:
        return (None,)
