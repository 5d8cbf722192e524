from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("Sigmoid", since=(1, 6, 13))
class Sigmoid(Op):
    """Y = 1 / (1 + exp(-X))."""

    @widened
    def kernel(self, X: Array) -> Array:
        return np.exp(np.minimum(X, 0)) / (1 + np.exp(-np.abs(X)))  # neither overflows

    def element(self, X: Expression) -> Expression:
        return X.apply("sigmoid")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Mul(dy, g.Mul(y, g.Sub(1.0, y))),)
