from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op


@op("Size", since=(1, 13, 19, 21, 23, 24, 25))
class Size(Op):
    """The number of elements of data."""

    follows_from_shapes = True

    def kernel(self, data: Array) -> Array:
        return np.array(data.size, np.int64)
