from __future__ import annotations

from onward.graph import Array, Op, op


@op("GreaterOrEqual", since=(12, 16))
class GreaterOrEqual(Op):
    """C = A >= B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A >= B
