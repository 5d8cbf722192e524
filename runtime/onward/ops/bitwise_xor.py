from __future__ import annotations

from onward.graph import Array, Expression, Op, op


@op("BitwiseXor", since=18)
class BitwiseXor(Op):
    """C = A ^ B, bit by bit; broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A ^ B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("bitxor", B)
