from __future__ import annotations

import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._indexing import REDUCTIONS, linear_along, put, scatter
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

    def lower(
        self, static: Static, outputs: Values, data: ir.Value, indices: ir.Value, updates: ir.Value
    ) -> requests.Request:
        if self.reduction not in REDUCTIONS:
            return requests.Unsupported(f"reduction {self.reduction!r}")
        numbers = normalized(self.axis, len(static.shape(data))), REDUCTIONS.index(self.reduction)
        shapes = ((updates, static.shape(indices)),)
        whole, taken = static.shape(data), static.shape(indices)
        _check(whole, taken, numbers[0])
        every = all(i == n for d, (i, n) in enumerate(zip(taken, whole, strict=True)) if d != numbers[0])
        loop = _columns if every else _lines
        return requests.Loop((outputs[0],), (data, indices, updates), loop, numbers, shapes=shapes)

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


def _check(data: tuple[int, ...], indices: tuple[int, ...], axis: int) -> None:
    if len(indices) != len(data) or any(
        i > n for d, (i, n) in enumerate(zip(indices, data, strict=True)) if d != axis
    ):
        raise ShapeError(f"indices {list(indices)} reach beyond data {list(data)} beside axis {axis}")


def scattered(data: Array, indices: Array, updates: Array, axis: int, reduction: str) -> Array:
    """data with elements along an axis replaced by, or combined with, updates.

    Raises:
        ShapeError: indices and updates differ in shape, or indices are longer than data along another axis.
    """
    if updates.shape != indices.shape:
        raise ShapeError(f"updates {list(updates.shape)} have not the shape of indices {list(indices.shape)}")
    _check(data.shape, indices.shape, normalized(axis, data.ndim))
    flat = data.reshape(-1, 1).copy()
    where = linear_along(data.shape, indices, normalized(axis, data.ndim))
    scatter(flat, where.reshape(-1), updates.reshape(-1, 1), reduction)
    return flat.reshape(data.shape)


def _columns(
    thread: int,
    threads: int,
    y: Array,
    data: Array,
    indices: Array,
    updates: Array,
    axis: int,
    how: int,
) -> None:
    """Where indices have all lines of data: lines that stand side by side take an element each in turn."""
    inner = 1
    for d in range(axis + 1, data.ndim):
        inner *= data.shape[d]
    extent, count = data.shape[axis], indices.shape[axis]
    lines = data.size // extent
    begin, end = lines * thread // threads, lines * (thread + 1) // threads
    while begin < end:
        outer, first = begin // inner, begin % inner
        last = min(inner, first + end - begin)
        for k in range(extent):
            row = (outer * extent + k) * inner
            for i in range(first, last):
                y.flat[row + i] = data.flat[row + i]
        for k in range(count):
            row = (outer * count + k) * inner
            for i in range(first, last):
                index = indices.flat[row + i]
                if index < -extent or index >= extent:
                    raise IndexError("an index is outside data")
                at = (outer * extent + (index + extent if index < 0 else index)) * inner + i
                put(y, at, updates.flat[row + i], how)
        begin += last - first


def _lines(
    thread: int,
    threads: int,
    y: Array,
    data: Array,
    indices: Array,
    updates: Array,
    axis: int,
    how: int,
) -> None:
    """Lines of data along the axis are shared out: what is scattered stays in its line."""
    extent = data.shape[axis]
    lines = data.size // extent
    for line in range(lines * thread // threads, lines * (thread + 1) // threads):
        rest, first, stride, place, step, inside = line, 0, 1, 0, 1, True
        along, next_index = 1, 1
        for d in range(data.ndim - 1, -1, -1):
            if d == axis:
                along, next_index = stride, step
            else:
                i = rest % data.shape[d]
                rest //= data.shape[d]
                first += i * stride
                place += i * step
                inside = inside and i < indices.shape[d]
            stride *= data.shape[d]
            step *= indices.shape[d]
        for k in range(extent):
            y.flat[first + k * along] = data.flat[first + k * along]
        if not inside:
            continue
        for k in range(indices.shape[axis]):
            index = indices.flat[place + k * next_index]
            if index < -extent or index >= extent:
                raise IndexError("an index is outside data")
            at = first + (index + extent if index < 0 else index) * along
            put(y, at, updates.flat[place + k * next_index], how)
