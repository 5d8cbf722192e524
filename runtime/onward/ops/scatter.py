from __future__ import annotations

from onward.graph import Array, Op, op
from onward.ops.scatter_elements import scattered


@op("Scatter", since=9)
class Scatter(Op):
    """data with the elements that indices name along an axis replaced by updates."""

    axis: int = 0

    def kernel(self, data: Array, indices: Array, updates: Array) -> Array:
        return scattered(data, indices, updates, self.axis, "none")
