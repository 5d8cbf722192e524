from __future__ import annotations

from onward.graph import Array, Expression, Op, op
from onward.ops._broadcast import AxisBroadcast


@op("Equal", since=(7, 11, 13, 19))
class Equal(Op):
    """C = A == B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A == B

    def element(self, A: Expression, B: Expression) -> Expression:
        if A.truth:
            return A.apply("and", B).apply("or", A.apply("not").apply("and", B.apply("not")))
        return A.apply("eq", B)


@op("Equal", since=1)
class Equal1(AxisBroadcast):
    """Equal with broadcasting from `axis` on."""
