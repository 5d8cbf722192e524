from __future__ import annotations

from onward.graph import Array, Op, op


@op("Or", since=7)
class Or(Op):
    """Whether either of A and B holds; broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A | B
