from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op


@op("Shape", since=(1, 13, 15, 19, 21, 23, 24, 25))
class Shape(Op):
    """The extents of data from axis `start` to before axis `end`."""

    follows_from_shapes = True

    start: int = 0
    end: int | None = None

    def kernel(self, data: Array) -> Array:
        return np.array(data.shape[self.start : self.end], np.int64)
