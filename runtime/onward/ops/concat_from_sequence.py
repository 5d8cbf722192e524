from __future__ import annotations

import numpy as np

from onward.errors import ShapeError
from onward.graph import Array, Op, op


@op("ConcatFromSequence", since=11)
class ConcatFromSequence(Op):
    """The tensors of a sequence one behind the other along an axis, or along a new one."""

    axis: int
    new_axis: int = 0

    def kernel(self, input_sequence: list[Array]) -> Array:
        if not input_sequence:
            raise ShapeError("the sequence is empty: there is nothing to join")
        join = np.stack if self.new_axis else np.concatenate
        return join(input_sequence, self.axis)
