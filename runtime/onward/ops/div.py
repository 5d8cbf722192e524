from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._broadcast import AxisBroadcast
from onward.ops._floats import is_integer


@op("Div", since=(7, 13, 14))
class Div(Op):
    """C = A / B, broadcast as in NumPy; integers are rounded towards zero."""

    def kernel(self, A: Array, B: Array) -> Array:
        if not is_integer(A):
            return A / B
        quotient = A // B
        return quotient + ((A % B != 0) & ((A < 0) != (B < 0))).astype(A.dtype)

    def element(self, A: Expression, B: Expression) -> Expression:
        return A / B

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, A: ir.Value, B: ir.Value
    ) -> tuple[ir.Value, ...]:
        dA = g.Div(dy, B)
        return dA, g.Neg(g.Mul(dA, y))


@op("Div", since=(1, 6))
class Div1(AxisBroadcast):
    """Div with broadcasting from `axis` on."""
