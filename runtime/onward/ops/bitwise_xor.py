from __future__ import annotations

from onward.graph import Array, Op, op


@op("BitwiseXor", since=18)
class BitwiseXor(Op):
    """C = A ^ B, bit by bit; broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A ^ B
