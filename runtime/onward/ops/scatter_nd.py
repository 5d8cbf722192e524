from __future__ import annotations

import math

import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._indexing import REDUCTIONS, linear_nd, put, scatter


@op("ScatterND", since=(11, 13, 16, 18))
class ScatterND(Op):
    """data with the slices that index tuples name replaced by, or combined with, updates.

    The gradient of `none` assumes that no tuple repeats.
    """

    reduction: str = "none"

    def kernel(self, data: Array, indices: Array, updates: Array) -> Array:
        return _scattered(data, indices, updates, self.reduction)

    def lower(
        self, static: Static, outputs: Values, data: ir.Value, indices: ir.Value, updates: ir.Value
    ) -> requests.Request:
        if self.reduction not in REDUCTIONS:
            return requests.Unsupported(f"reduction {self.reduction!r}")
        whole, tuples = static.shape(data), static.shape(indices)
        if not tuples or tuples[-1] > len(whole):
            raise ShapeError(f"index tuples {list(tuples)} do not fit data {list(whole)}")
        shapes = ((updates, (*tuples[:-1], *whole[tuples[-1] :])),)
        how = (REDUCTIONS.index(self.reduction),)
        return requests.Loop((outputs[0],), (data, indices, updates), _slices, how, shapes=shapes)

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


def _slices(
    thread: int, threads: int, y: Array, data: Array, indices: Array, updates: Array, how: int
) -> None:
    """Elements of the result are shared out: each thread goes through all tuples, and writes its own."""
    low, high = y.size * thread // threads, y.size * (thread + 1) // threads
    for at in range(low, high):
        y.flat[at] = data.flat[at]
    depth = indices.shape[indices.ndim - 1]
    inner = 1
    for d in range(depth, data.ndim):
        inner *= data.shape[d]
    for number in range(indices.size // depth if depth > 0 else updates.size // inner):
        place = 0
        for d in range(depth):
            extent = data.shape[d]
            index = indices.flat[number * depth + d]
            if index < -extent or index >= extent:
                raise IndexError("an index is outside data")
            place = place * extent + (index + extent if index < 0 else index)
        place *= inner
        new = number * inner - place
        for at in range(max(low, place), min(high, place + inner)):
            put(y, at, updates.flat[new + at], how)
