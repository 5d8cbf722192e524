from __future__ import annotations

import numpy as np

from onward.graph import Array, Expression, Op, op


@op("BitShift", since=(11, 28))
class BitShift(Op):
    """Z = X shifted by Y bits in the direction named, LEFT or RIGHT."""

    direction: str

    def kernel(self, X: Array, Y: Array) -> Array:
        return np.left_shift(X, Y) if self.direction == "LEFT" else np.right_shift(X, Y)

    def element(self, X: Expression, Y: Expression) -> Expression:
        return X.apply("shl" if self.direction == "LEFT" else "shr", Y)
