from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, op
from onward.ops._indexing import linear_along, scatter
from onward.ops._shape import normalized


@op("ScatterElements", since=(11, 13, 16, 18))
class ScatterElements(Op):
    """data with the elements that indices name along an axis replaced by, or combined with, updates.

    The gradient of `none` assumes that no index repeats.
    """

    axis: int = 0
    reduction: str = "none"

    def kernel(self, data: Array, indices: Array, updates: Array) -> Array:
        return scattered(data, indices, updates, self.axis, self.reduction)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, indices: ir.Value, updates: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        picked = g.GatherElements(dy, indices, axis=self.axis)
        if self.reduction == "add":
            return dy, None, picked
        if self.reduction != "none":
            raise UnsupportedError(f"reduction {self.reduction!r} has no gradient; use none or add")
        kept = g.ScatterElements(dy, indices, g.zeros_like(updates), axis=self.axis)
        return kept, None, picked


def scattered(data: Array, indices: Array, updates: Array, axis: int, reduction: str) -> Array:
    """data with elements along an axis replaced by, or combined with, updates."""
    flat = data.reshape(-1, 1).copy()
    where = linear_along(data.shape, indices, normalized(axis, data.ndim))
    scatter(flat, where.reshape(-1), updates.reshape(-1, 1), reduction)
    return flat.reshape(data.shape)
