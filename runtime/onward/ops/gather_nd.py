from __future__ import annotations

import math

import onnx_ir as ir

from onward.graph import Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._indexing import linear_nd
from onward.ops._shape import rank_of


@op("GatherND", since=(11, 12, 13))
class GatherND(Op):
    """The slices of data that index tuples name; the first `batch_dims` axes go side by side."""

    batch_dims: int = 0

    def kernel(self, data: Array, indices: Array) -> Array:
        return _gathered(data, indices, self.batch_dims)

    def infer(self, data: ir.Value, indices: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...]] | None]:
        shape, tuples = dims_of(data), dims_of(indices)
        if shape is None or not tuples or not isinstance(depth := tuples[-1], int):
            return [None]
        return [(dtype_of(data), (*tuples[:-1], *shape[self.batch_dims + depth :]))]

    def lower(self, static: Static, outputs: Values, data: ir.Value, indices: ir.Value) -> requests.Take:
        first, depth = self.batch_dims, static.shape(indices)[-1]
        outer, inner = len(static.shape(indices)) - 1, range(first + depth, len(static.shape(data)))
        beside = range(first)
        return requests.Take(
            outputs[0],
            data,
            indices,
            (*beside, *(None,) * (outer - first), *inner),
            (*range(outer), *(None,) * len(inner)),
            tuple(range(first, first + depth)),
            tuples=True,
        )

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, indices: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        tuples, rank = indices, rank_of(indices)
        lead = g.Concat(*[g.dim(indices, i) for i in range(rank - 1)], [1], axis=0) if rank > 1 else None
        for i in reversed(range(self.batch_dims)):
            along = g.Range(0, g.Squeeze(g.dim(indices, i), [0]), 1)
            column = g.Unsqueeze(along, [j for j in range(rank) if j != i])
            tuples = g.Concat(g.Expand(column, lead), tuples, axis=-1)
        return g.ScatterND(g.zeros_like(data), tuples, dy, reduction="add"), None


def _gathered(data: Array, indices: Array, batch_dims: int) -> Array:
    depth = batch_dims + indices.shape[-1]
    rows = data.reshape(math.prod(data.shape[:depth]), *data.shape[depth:])
    return rows[linear_nd(data.shape, indices, batch_dims)]
