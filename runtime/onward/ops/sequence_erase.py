from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op
from onward.ops._sequence import place_in


@op("SequenceErase", since=11)
class SequenceErase(Op):
    """The sequence without the tensor at a position; without the last by default."""

    def kernel(self, input_sequence: list[Array], position: Array | None = None) -> tuple[list[Array]]:
        count = len(input_sequence)
        at = place_in(np.int64(-1) if position is None else position, count, count)
        return ([*input_sequence[:at], *input_sequence[at + 1 :]],)
