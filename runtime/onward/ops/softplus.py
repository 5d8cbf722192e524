from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("Softplus", since=(1, 22))
class Softplus(Op):
    """Y = log(1 + exp(X))."""

    @widened
    def kernel(self, X: Array) -> Array:
        return np.maximum(X, 0) + np.log1p(np.exp(-np.abs(X)))

    def element(self, X: Expression) -> Expression:
        return X.softplus()

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Mul(dy, g.Sigmoid(X)),)
