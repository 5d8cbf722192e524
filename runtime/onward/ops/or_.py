from __future__ import annotations

from onward.graph import Array, Expression, Op, op


@op("Or", since=7)
class Or(Op):
    """Whether either of A and B holds; broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A | B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("or", B)
