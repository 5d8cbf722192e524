from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Neg", since=(1, 6, 13))
class Neg(Op):
    """Y = -X."""

    def kernel(self, X: Array) -> Array:
        return -X

    def element(self, X: Expression) -> Expression:
        return -X

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Neg(dy),)
