from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Reciprocal", since=(1, 6, 13))
class Reciprocal(Op):
    """Y = 1 / X."""

    def kernel(self, X: Array) -> Array:
        return 1 / X

    def element(self, X: Expression) -> Expression:
        return X.apply("reciprocal")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Neg(g.Mul(dy, g.Mul(y, y))),)
