from __future__ import annotations

from onward.graph import Array, Expression, Op, op
from onward.ops._broadcast import AxisBroadcast


@op("Or", since=7)
class Or(Op):
    """Whether either of A and B holds; broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A | B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("or", B)


@op("Or", since=1)
class Or1(AxisBroadcast):
    """Or with broadcasting from `axis` on."""
