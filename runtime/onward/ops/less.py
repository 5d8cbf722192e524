from __future__ import annotations

from onward.graph import Array, Expression, Op, op
from onward.ops._broadcast import AxisBroadcast


@op("Less", since=(7, 9, 13))
class Less(Op):
    """C = A < B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A < B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("lt", B)


@op("Less", since=1)
class Less1(AxisBroadcast):
    """Less with broadcasting from `axis` on."""
