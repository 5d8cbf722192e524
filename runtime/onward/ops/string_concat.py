from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op


@op("StringConcat", since=20)
class StringConcat(Op):
    """Z = X followed by Y, broadcast as in NumPy."""

    def kernel(self, X: Array, Y: Array) -> Array:
        return np.asarray(X.astype(object) + Y.astype(object), dtype=object)
