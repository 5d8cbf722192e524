from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("LeakyRelu", since=(1, 6, 16))
class LeakyRelu(Op):
    """y = x where x >= 0, else alpha · x; slope alpha at 0."""

    alpha: float = 0.01

    def kernel(self, X: Array) -> Array:
        return np.where(X < 0, X * X.dtype.type(self.alpha), X)

    def element(self, X: Expression) -> Expression:
        return X.apply("lt", 0.0).apply("select", X * self.alpha, X)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Where(g.Greater(X, 0.0), dy, g.Mul(dy, self.alpha)),)
