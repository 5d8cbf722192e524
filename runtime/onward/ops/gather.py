from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._indexing import progression
from onward.ops._shape import normalized, rank_of


@op("Gather", since=(1, 11, 13))
class Gather(Op):
    """The slices of data that indices name along an axis; negative ones count from the end."""

    axis: int = 0

    def kernel(self, data: Array, indices: Array) -> Array:
        return np.take(data, indices, axis=self.axis)

    def lower(
        self, static: Static, outputs: Values, data: ir.Value, indices: ir.Value
    ) -> requests.Gather | requests.Positions:
        shape = static.shape(data)
        axis = normalized(self.axis, len(shape))
        if (positions := progression(static.known(indices), shape[axis])) is not None:
            return requests.Positions(outputs[0], data, axis, positions, not static.shape(indices))
        return requests.Gather(outputs[0], data, indices, self.axis)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, indices: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        axis = normalized(self.axis, rank_of(data))
        return g.onward.GatherGrad(dy, indices, g.shape(data), axis=axis), None
