from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Abs", since=(1, 6, 13))
class Abs(Op):
    """Y = |X|."""

    def kernel(self, X: Array) -> Array:
        return np.abs(X)

    def element(self, X: Expression) -> Expression:
        return X.apply("abs")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Mul(dy, g.Sign(X)),)
