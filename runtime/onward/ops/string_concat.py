from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op


@op("StringConcat", since=20)
class StringConcat(Op):
    """X followed by Y, element by element, broadcast."""

    def kernel(self, X: Array, Y: Array) -> Array:
        left, right = np.broadcast_arrays(X.astype(object), Y.astype(object))
        joined = np.empty(left.shape, object)
        joined.reshape(-1)[:] = [a + b for a, b in zip(left.reshape(-1), right.reshape(-1), strict=True)]
        return joined
