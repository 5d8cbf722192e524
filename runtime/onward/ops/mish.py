from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("Mish", since=(18, 22))
class Mish(Op):
    """Y = X · tanh(log(1 + exp(X)))."""

    @widened
    def kernel(self, X: Array) -> Array:
        return X * np.tanh(np.maximum(X, 0) + np.log1p(np.exp(-np.abs(X))))

    def element(self, X: Expression) -> Expression:
        return X * X.softplus().apply("tanh")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        t = g.Tanh(g.Softplus(X))
        bend = g.Mul(X, g.Mul(g.Sub(1.0, g.Mul(t, t)), g.Sigmoid(X)))
        return (g.Mul(dy, g.Add(t, bend)),)
