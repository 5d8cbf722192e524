from __future__ import annotations

from onward.graph import Array, Expression, Op, op


@op("Equal", since=(7, 11, 13, 19))
class Equal(Op):
    """C = A == B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A == B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("eq", B)
