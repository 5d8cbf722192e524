from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op
from onward.ops._shape import normalized


@op("OneHot", since=(9, 11, 28))
class OneHot(Op):
    """values[1] where the position along a new axis is the index, values[0] elsewhere."""

    static_operands = ("depth",)

    axis: int = -1

    def kernel(self, indices: Array, depth: Array, values: Array) -> Array:
        extent = int(depth.reshape(-1)[0])
        axis = normalized(self.axis, indices.ndim + 1)
        wanted = indices.astype(np.int64, copy=False)
        wanted = np.expand_dims(np.where(wanted < 0, wanted + extent, wanted), axis)
        shape = [1] * (indices.ndim + 1)
        shape[axis] = extent
        return np.where(wanted == np.arange(extent).reshape(shape), values[1], values[0])
