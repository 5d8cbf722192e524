from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._broadcast import AxisBroadcast


@op("Sub", since=(7, 13, 14))
class Sub(Op):
    """C = A - B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A - B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A - B

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, A: ir.Value, B: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return dy, g.Neg(dy)


@op("Sub", since=(1, 6))
class Sub1(AxisBroadcast):
    """Sub with broadcasting from `axis` on."""
