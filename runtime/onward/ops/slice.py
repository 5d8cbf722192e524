from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Unsupported, Values
from onward.ops._shape import constant_of, like, normalized, rank_of

_ALL = slice(0, 2**63 - 1, 1)


@op("Slice", since=(10, 11, 13))
class Slice(Op):
    """data[start:end:step] along each axis named; negative positions count from the end."""

    static_operands = ("starts", "ends", "axes", "steps")

    def kernel(
        self,
        data: Array,
        starts: Array,
        ends: Array,
        axes: Array | None = None,
        steps: Array | None = None,
    ) -> Array:
        picked = zip(_picked(data.ndim, starts, ends, axes, steps), data.shape, strict=True)
        return data[tuple(_within(cut, extent) for cut, extent in picked)]

    def infer(self, data: ir.Value, *operands: ir.Value | None) -> list[tuple[ir.DataType, Any] | None]:
        dims, known = dims_of(data), [constant_of(v) for v in operands]
        if dims is None or any(v is not None and k is None for v, k in zip(operands, known, strict=True)):
            return [None]
        starts, ends, axes, steps = [*known, None, None][:4]
        if starts is None or ends is None:
            return [None]
        picked = _picked(len(dims), starts, ends, axes, steps)
        found = [
            len(_places(cut, dim)) if isinstance(dim, int) else dim if cut == _ALL else None
            for dim, cut in zip(dims, picked, strict=True)
        ]
        return [(dtype_of(data), tuple(found))]

    def lower(
        self,
        static: Static,
        outputs: Values,
        data: ir.Value,
        starts: ir.Value,
        ends: ir.Value,
        axes: ir.Value | None = None,
        steps: ir.Value | None = None,
    ) -> requests.Slices | Unsupported:
        known = [None if v is None else static.known(v) for v in (starts, ends, axes, steps)]
        first, last = known[:2]
        given = zip((axes, steps), known[2:], strict=True)
        if first is None or last is None or any(v is not None and k is None for v, k in given):
            return Unsupported("positions that are not constant")
        shape = static.shape(data)
        picked = zip(_picked(len(shape), first, last, known[2], known[3]), shape, strict=True)
        return requests.Slices(outputs, data, (tuple(_within(cut, extent) for cut, extent in picked),))

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        data: ir.Value,
        starts: ir.Value,
        ends: ir.Value,
        axes: ir.Value | None = None,
        steps: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        padded = _as_padding(g, dy, data, starts, ends, axes, steps)
        if padded is not None:
            return (like(padded, data),)
        rank = rank_of(data)
        if axes is None:
            dims = dims_of(starts)
            count = dims[0] if dims is not None and len(dims) == 1 else None
            named = list(range(count)) if isinstance(count, int) else None
        else:
            known = constant_of(axes)
            named = None if known is None else [normalized(int(a), rank) for a in known]
        if named is None:
            raise UnsupportedError("the gradient of Slice needs axes that are constant")
        out = dy
        for i, axis in enumerate(named):
            picked = g.Slice(
                g.Range(0, g.Squeeze(g.dim(data, axis), [0]), 1),
                g.Slice(starts, [i], [i + 1]),
                g.Slice(ends, [i], [i + 1]),
                [0],
                None if steps is None else g.Slice(steps, [i], [i + 1]),
            )
            shape = g.Concat(
                *[g.dim(data if j == axis or j in named[:i] else dy, j) for j in range(rank)], axis=0
            )
            out = g.onward.GatherGrad(out, picked, shape, axis=axis)
        return (dy if out is dy else like(out, data),)


@op("Slice", since=1)
class Slice1(Op):
    """data[start:end] along each axis named by attributes."""

    axes: tuple[int, ...] | None = None
    ends: tuple[int, ...]
    starts: tuple[int, ...]

    def canonical(self, g: Builder, data: ir.Value) -> ir.Value:
        axes = None if self.axes is None else g.const(self.axes, np.int64)
        return g.Slice(data, g.const(self.starts, np.int64), g.const(self.ends, np.int64), axes)


def _picked(
    rank: int, starts: Array, ends: Array, axes: Array | None, steps: Array | None
) -> tuple[slice, ...]:
    """The cut of each axis."""
    picked = [_ALL] * rank
    named = range(len(starts)) if axes is None else axes
    strides = [1] * len(starts) if steps is None else steps
    for axis, start, end, step in zip(named, starts, ends, strides, strict=True):
        if step == 0:
            raise ValueError("a step is 0")
        picked[normalized(int(axis), rank)] = slice(int(start), int(end), int(step))
    return tuple(picked)


def _within(cut: slice, extent: int) -> slice:
    """A cut of an axis of known extent, by numbers that are not larger than it."""
    found = _places(cut, extent)
    if len(found) < 2:
        return slice(found[0], found[0] + 1, 1) if found else slice(0, 0, 1)
    return slice(found.start, None if found.stop < 0 else found.stop, found.step)


def _places(cut: slice, extent: int) -> range:
    """The positions that a cut takes; clamped as the specification says.

    NumPy differs: with a negative step, a start before the first element takes none there.
    """
    start, stop = (n + extent if n < 0 else n for n in (cut.start, cut.stop))
    if cut.step > 0:
        return range(min(max(start, 0), extent), min(max(stop, 0), extent), cut.step)
    return range(min(max(start, 0), extent - 1), min(max(stop, -1), extent - 1), cut.step)


def _as_padding(
    g: Builder,
    dy: ir.Value,
    data: ir.Value,
    starts: ir.Value,
    ends: ir.Value,
    axes: ir.Value | None,
    steps: ir.Value | None,
) -> ir.Value | None:
    """Zeros around dy where a contiguous slice of known extents left elements out; None elsewhere."""
    dims, first, last = dims_of(data), constant_of(starts), constant_of(ends)
    named, strides = constant_of(axes), constant_of(steps)
    if dims is None or first is None or last is None:
        return None
    if (axes is not None and named is None) or (steps is not None and strides is None):
        return None
    if strides is not None and np.any(strides != 1):
        return None
    before, after = [0] * len(dims), [0] * len(dims)
    for i, (start, end) in enumerate(zip(first, last, strict=True)):
        axis = i if named is None else normalized(int(named[i]), len(dims))
        extent = dims[axis]
        if not isinstance(extent, int):
            return None
        low, high, _ = slice(int(start), int(end)).indices(extent)
        before[axis], after[axis] = low, extent - max(low, high)
    return g.Pad(dy, [*before, *after])
