from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Sqrt", since=(1, 6, 13))
class Sqrt(Op):
    """The square root; NaN below zero."""

    def kernel(self, X: Array) -> Array:
        return np.sqrt(X)

    def element(self, X: Expression) -> Expression:
        return X.apply("sqrt")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Div(g.Mul(dy, 0.5), y),)
