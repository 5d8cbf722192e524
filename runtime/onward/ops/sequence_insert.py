from __future__ import annotations

from onward.graph import Array, Op, op
from onward.ops._sequence import place_in


@op("SequenceInsert", since=11)
class SequenceInsert(Op):
    """The sequence with a tensor before a position; at the end by default."""

    def kernel(
        self, input_sequence: list[Array], tensor: Array, position: Array | None = None
    ) -> tuple[list[Array]]:
        count = len(input_sequence)
        at = place_in(position, count, count + 1)
        return ([*input_sequence[:at], tensor, *input_sequence[at:]],)
