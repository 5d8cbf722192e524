from __future__ import annotations

from onward.graph import Array, Expression, Op, op


@op("GreaterOrEqual", since=(12, 16))
class GreaterOrEqual(Op):
    """C = A >= B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A >= B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("ge", B)
