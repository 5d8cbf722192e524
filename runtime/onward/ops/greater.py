from __future__ import annotations

from onward.graph import Array, Expression, Op, op
from onward.ops._broadcast import AxisBroadcast


@op("Greater", since=(7, 9, 13))
class Greater(Op):
    """C = A > B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A > B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("gt", B)


@op("Greater", since=1)
class Greater1(AxisBroadcast):
    """Greater with broadcasting from `axis` on."""
