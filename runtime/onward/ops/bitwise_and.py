from __future__ import annotations

from onward.graph import Array, Expression, Op, op


@op("BitwiseAnd", since=18)
class BitwiseAnd(Op):
    """C = A & B, bit by bit; broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A & B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("bitand", B)
