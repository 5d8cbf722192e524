from __future__ import annotations

from onward.graph import Array, Op, op


@op("And", since=7)
class And(Op):
    """Whether both of A and B hold; broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A & B
