from __future__ import annotations

from onward.graph import Array, Op, op


@op("LessOrEqual", since=(12, 16))
class LessOrEqual(Op):
    """C = A <= B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A <= B
