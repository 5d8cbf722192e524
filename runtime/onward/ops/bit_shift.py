from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op


@op("BitShift", since=(11, 28))
class BitShift(Op):
    """Z = X shifted by Y bits in the direction named, LEFT or RIGHT."""

    direction: str

    def kernel(self, X: Array, Y: Array) -> Array:
        return np.left_shift(X, Y) if self.direction == "LEFT" else np.right_shift(X, Y)
