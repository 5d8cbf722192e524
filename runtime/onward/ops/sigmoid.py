from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op
from onward.ops._floats import widened


@op("Sigmoid", since=(6, 13))
class Sigmoid(Op):
    """Y = 1 / (1 + exp(-X))."""

    @widened
    def kernel(self, X: Array) -> Array:
        e = np.exp(-np.abs(X))  # never overflows
        return np.where(X >= 0, 1, e) / (1 + e)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Mul(dy, g.Mul(y, g.Sub(1.0, y))),)
