from __future__ import annotations

from onward.graph import Array, Op, op


@op("Less", since=(7, 9, 13))
class Less(Op):
    """C = A < B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A < B
