from __future__ import annotations

from onward.graph import Array, Op, op


@op("Xor", since=7)
class Xor(Op):
    """Whether exactly one of A and B holds; broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A ^ B
