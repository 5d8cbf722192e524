from __future__ import annotations

from onward.graph import Array, Op, op


@op("BitwiseNot", since=18)
class BitwiseNot(Op):
    """Y = ~X, bit by bit."""

    def kernel(self, X: Array) -> Array:
        return ~X
