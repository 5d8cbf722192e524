from __future__ import annotations

from onward.graph import Array, Expression, Op, op


@op("Not", since=1)
class Not(Op):
    """Y = not X."""

    def kernel(self, X: Array) -> Array:
        return ~X

    def element(self, X: Expression) -> Expression:
        return X.apply("not")
