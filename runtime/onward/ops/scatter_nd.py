from __future__ import annotations

import math

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, op
from onward.ops._indexing import linear_nd, scatter


@op("ScatterND", since=(11, 13, 16, 18))
class ScatterND(Op):
    """data with the slices that index tuples name replaced by, or combined with, updates.

    The gradient of `none` assumes that no tuple repeats.
    """

    reduction: str = "none"

    def kernel(self, data: Array, indices: Array, updates: Array) -> Array:
        return _scattered(data, indices, updates, self.reduction)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, indices: ir.Value, updates: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        picked = g.GatherND(dy, indices)
        if self.reduction == "add":
            return dy, None, picked
        if self.reduction != "none":
            raise UnsupportedError(f"reduction {self.reduction!r} has no gradient; use none or add")
        return g.ScatterND(dy, indices, g.zeros_like(updates)), None, picked


def _scattered(data: Array, indices: Array, updates: Array, reduction: str) -> Array:
    depth = indices.shape[-1]
    rows = data.reshape(math.prod(data.shape[:depth]), math.prod(data.shape[depth:])).copy()
    where = linear_nd(data.shape, indices).reshape(-1)
    scatter(rows, where, updates.reshape(where.size, rows.shape[1]), reduction)
    return rows.reshape(data.shape)
