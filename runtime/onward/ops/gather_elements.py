from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._indexing import grid_along
from onward.ops._shape import normalized


@op("GatherElements", since=(11, 13))
class GatherElements(Op):
    """The elements of data that indices name along an axis, at the indices' own positions elsewhere."""

    axis: int = 0

    def kernel(self, data: Array, indices: Array) -> Array:
        axis = normalized(self.axis, data.ndim)
        return data[grid_along(indices, axis, data.shape[axis])]

    def lower(self, static: Static, outputs: Values, data: ir.Value, indices: ir.Value) -> requests.Take:
        rank = len(static.shape(data))
        axis = normalized(self.axis, rank)
        along = tuple(None if a == axis else a for a in range(rank))
        return requests.Take(outputs[0], data, indices, along, tuple(range(rank)), (axis,))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, indices: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return g.ScatterElements(g.zeros_like(data), indices, dy, axis=self.axis, reduction="add"), None
