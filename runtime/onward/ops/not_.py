from __future__ import annotations

from onward.graph import Array, Op, op


@op("Not", since=1)
class Not(Op):
    """Y = not X."""

    def kernel(self, X: Array) -> Array:
        return ~X
