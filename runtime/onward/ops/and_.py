from __future__ import annotations

from onward.graph import Array, Expression, Op, op


@op("And", since=7)
class And(Op):
    """Whether both of A and B hold; broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A & B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("and", B)
