from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._shape import normalized

_SORTED = 64
"""Up to so many elements a heap orders an axis as fast as NumPy's sort."""


@op("TopK", since=(10, 11, 24), multiple_outputs=True)
class TopK(Op):
    """The K largest or smallest elements along an axis, in order, and their positions; the first of ties."""

    static_operands = ("K",)

    axis: int = -1
    largest: int = 1
    sorted: int = 1

    def kernel(self, X: Array, K: Array) -> tuple[Array, ...]:
        return _top(X, int(K.reshape(-1)[0]), self.axis, bool(self.largest))

    def lower(self, static: Static, outputs: Values, X: ir.Value, K: ir.Value) -> requests.Request:
        known, shape = static.known(K), static.shape(X)
        if known is None:
            return requests.Unsupported("a K that is not constant")
        axis = normalized(self.axis, len(shape))
        k = _counted(int(known.reshape(-1)[0]), shape[axis])
        if k == 0 or (k > _SORTED and 2 * k > shape[axis]):
            return requests.Unsupported(
                "most of the axis in order: NumPy sorts" if k else "nothing is asked for"
            )
        return requests.Loop(outputs, (X,), _largest, (axis, bool(self.largest)))

    def gradient(
        self,
        g: Builder,
        dy: tuple[ir.Value | None, ...],
        y: tuple[ir.Value, ...],
        X: ir.Value,
        K: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        if dy[0] is None:
            return None, None
        return g.ScatterElements(g.zeros_like(X), y[1], dy[0], axis=self.axis, reduction="add"), None


@op("TopK", since=1)
class TopK1(Op):
    """TopK whose k is an attribute."""

    axis: int = -1
    k: int

    def canonical(self, g: Builder, X: ir.Value) -> tuple[ir.Value, ...]:
        return g.emit("TopK", X, [self.k], outputs=2, axis=self.axis)


def _counted(k: int, extent: int) -> int:
    """k, where the axis has as many elements."""
    if not 0 <= k <= extent:
        raise ValueError(f"K is {k}, and the axis has {extent} elements")
    return k


def _top(x: Array, k: int, axis: int, largest: bool) -> tuple[Array, ...]:
    k = _counted(k, x.shape[axis])
    if largest:
        # sorted backwards from the end, so that of equal elements the first comes first
        order = x.shape[axis] - 1 - np.argsort(np.flip(x, axis), axis=axis, kind="stable")
        order = np.flip(order, axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    order = np.take(order, np.arange(k), axis=axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64, copy=False)


def _largest(
    thread: int, threads: int, values: Array, places: Array, x: Array, axis: int, largest: bool
) -> None:
    """Lines along the axis are shared out. Of each the best k so far are a heap, the worst of them first, in
    the memory of the result; at last the heap is sorted where it is."""
    extent, k = x.shape[axis], values.shape[axis]
    step = 1
    for d in range(axis + 1, x.ndim):
        step *= x.shape[d]
    lines = x.size // extent
    for line in range(lines * thread // threads, lines * (thread + 1) // threads):
        first, base = line // step * step * extent + line % step, line // step * step * k + line % step
        for i in range(k):
            values.flat[base + i * step] = x.flat[first + i * step]
            places.flat[base + i * step] = i
        for i in range(k // 2 - 1, -1, -1):
            _sink(values, places, base, step, i, k, largest)
        for i in range(k, extent):
            candidate = x.flat[first + i * step]
            # of equal elements the first counts: one that comes later has to be better
            if _better(candidate, values.flat[base], largest):
                values.flat[base] = candidate
                places.flat[base] = i
                _sink(values, places, base, step, 0, k, largest)
        for last in range(k - 1, 0, -1):
            end = base + last * step
            worst, place = values.flat[base], places.flat[base]
            values.flat[base], places.flat[base] = values.flat[end], places.flat[end]
            values.flat[end], places.flat[end] = worst, place
            _sink(values, places, base, step, 0, last, largest)


def _better(a: Any, b: Any, largest: bool) -> bool:
    """Whether a comes before b: NaN is larger than any number."""
    if a != a or b != b:
        return b == b if largest else a == a
    return bool(a > b if largest else a < b)


def _sink(values: Array, places: Array, base: int, step: int, root: int, count: int, largest: bool) -> None:
    """Let what stands at a place of a heap sink below what is worse."""
    value, place = values.flat[base + root * step], places.flat[base + root * step]
    at = root
    while True:
        child = 2 * at + 1
        if child >= count:
            break
        if child + 1 < count and _worse(
            values.flat[base + (child + 1) * step],
            places.flat[base + (child + 1) * step],
            values.flat[base + child * step],
            places.flat[base + child * step],
            largest,
        ):
            child += 1
        there = base + child * step
        if not _worse(values.flat[there], places.flat[there], value, place, largest):
            break
        values.flat[base + at * step], places.flat[base + at * step] = values.flat[there], places.flat[there]
        at = child
    values.flat[base + at * step], places.flat[base + at * step] = value, place


def _worse(a: Any, a_place: int, b: Any, b_place: int, largest: bool) -> bool:
    if _better(b, a, largest):
        return True
    return not _better(a, b, largest) and a_place > b_place
