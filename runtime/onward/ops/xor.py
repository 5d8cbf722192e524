from __future__ import annotations

from onward.graph import Array, Expression, Op, op
from onward.ops._broadcast import AxisBroadcast


@op("Xor", since=7)
class Xor(Op):
    """Whether exactly one of A and B holds; broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A ^ B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("and", B.apply("not")).apply("or", B.apply("and", A.apply("not")))


@op("Xor", since=1)
class Xor1(AxisBroadcast):
    """Xor with broadcasting from `axis` on."""
