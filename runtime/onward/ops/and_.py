from __future__ import annotations

from onward.graph import Array, Expression, Op, op
from onward.ops._broadcast import AxisBroadcast


@op("And", since=7)
class And(Op):
    """Whether both of A and B hold; broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A & B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("and", B)


@op("And", since=1)
class And1(AxisBroadcast):
    """And with broadcasting from `axis` on."""
