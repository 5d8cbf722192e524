from __future__ import annotations

from onward.graph import Array, Op, op
from onward.ops._sequence import place_in


@op("SequenceAt", since=11)
class SequenceAt(Op):
    """The tensor at a position; negative ones count from the end."""

    def kernel(self, input_sequence: list[Array], position: Array) -> Array:
        count = len(input_sequence)
        return input_sequence[place_in(position, count, count)]
