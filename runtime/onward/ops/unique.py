from __future__ import annotations

import ml_dtypes
import numpy as np

from onward.graph import Array, Op, op
from onward.ops._shape import normalized


@op("Unique", since=(11, 28))
class Unique(Op):
    """The different elements, or slices along an axis, in order or as they come first; and where they are.

    Y, indices of the first of each, for each element the place of its own in Y, and how many there are.
    """

    axis: int | None = None
    sorted: int = 1

    def kernel(self, X: Array) -> tuple[Array, ...]:
        axis = None if self.axis is None else normalized(self.axis, X.ndim)
        # NumPy knows no order of these; float32 has every one of their values
        values = X.astype(np.float32) if X.dtype == ml_dtypes.bfloat16 else X
        _, first, inverse, counts = np.unique(
            values, return_index=True, return_inverse=True, return_counts=True, axis=axis
        )
        inverse = inverse.reshape(-1)
        if not self.sorted:
            order = np.argsort(first, kind="stable")
            place = np.empty_like(order)
            place[order] = np.arange(order.size)
            first, counts, inverse = first[order], counts[order], place[inverse]
        y = np.take(X.reshape(-1) if axis is None else X, first, axis=axis or 0)
        return (y, *(a.astype(np.int64) for a in (first, inverse, counts)))
