from __future__ import annotations

import numpy as np

from onward.errors import ShapeError
from onward.graph import Array, Op, op
from onward.ops.split import pieces


@op("SplitToSequence", since=(11, 24))
class SplitToSequence(Op):
    """Pieces along an axis: of the lengths in `split`, of one length, or single slices, as a sequence."""

    axis: int = 0
    keepdims: int = 1

    def kernel(self, input: Array, split: Array | None = None) -> tuple[list[Array]]:
        extent = input.shape[self.axis]
        if split is None:
            slices = np.moveaxis(input, self.axis, 0)
            single = [np.expand_dims(x, self.axis) if self.keepdims else np.asarray(x) for x in slices]
            return (single,)
        if split.ndim == 0:
            length = int(split)
            if length < 1:
                raise ShapeError(f"split is {length}; pieces have 1 element or more")
            split = np.diff([*range(0, extent, length), extent])
        return (list(pieces(input, self.axis, split, len(split))),)
