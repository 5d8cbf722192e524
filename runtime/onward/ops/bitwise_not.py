from __future__ import annotations

from onward.graph import Array, Expression, Op, op


@op("BitwiseNot", since=18)
class BitwiseNot(Op):
    """Y = ~X, bit by bit."""

    def kernel(self, X: Array) -> Array:
        return ~X

    def element(self, X: Expression) -> Expression:
        return X.apply("bitnot")
