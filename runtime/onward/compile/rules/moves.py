"""Reshape, transpose, slice, concat, pad, tile, cast: views on memory where one does, else copies."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.compile.codegen.conversions import STORAGE
from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels import convert as conversions
from onward.compile.kernels.convert import Lookup
from onward.compile.registry import lowers
from onward.compile.tensors import Tensor, gapless, permuted, sliced
from onward.graph import Array, requests

__all__: list[str] = []

_conversion = functools.lru_cache(256)(conversions.convert)
_lookup = functools.lru_cache(64)(conversions.lookup)


@lowers(requests.Identity)
def identity(c: Context, request: requests.Identity) -> None:
    """The same memory."""
    c.alias(request.y, c.present(request.x))


@lowers(requests.View)
def view(c: Context, request: requests.View) -> None:
    """The same memory under another shape, where the strides allow it."""
    c.view(request.y, request.x)


@lowers(requests.Reinterpret)
def reinterpret(c: Context, request: requests.Reinterpret) -> None:
    """The same memory."""
    c.alias(request.y, replace(c.present(request.x), dtype=c.dtype(request.y), image=None))


@lowers(requests.Transpose)
def transpose(c: Context, request: requests.Transpose) -> None:
    """A view with the strides in another order."""
    c.alias(request.y, permuted(c.present(request.x), request.perm))


@lowers(requests.Slices)
def slices(c: Context, request: requests.Slices) -> None:
    """A view for each result."""
    for y, picked in zip(request.outputs, request.picked, strict=True):
        source = c.present(request.x)
        offset, shape, strides = source.offset, [], []
        for cut, extent, stride in zip(picked, source.shape, source.strides, strict=True):
            positions = range(extent)[cut]
            offset += stride * (positions.start if positions else 0)
            shape.append(len(positions))
            strides.append(stride * positions.step)
        c.alias(y, replace(source, shape=tuple(shape), strides=tuple(strides), offset=offset, image=None))


def _at(whole: Tensor, request: requests.Positions | requests.PositionsGradient) -> Tensor:
    """The view of a tensor that a request names."""
    axis, places = request.axis, request.positions
    shape, strides = list(whole.shape), list(whole.strides)
    offset = whole.offset + strides[axis] * places.start
    shape[axis], strides[axis] = len(places), strides[axis] * places.step
    if request.single:
        del shape[axis], strides[axis]
    return replace(whole, shape=tuple(shape), strides=tuple(strides), offset=offset, image=None)


@lowers(requests.Positions)
def positions(c: Context, request: requests.Positions) -> None:
    """A view."""
    c.alias(request.y, _at(c.present(request.x), request))


def _positions_gradient_unsuited(q: Queries, request: requests.PositionsGradient) -> str | None:
    return q.not_floats(request.dy) or q.empty(request.dx, request.dy)


@lowers(requests.PositionsGradient, suits=_positions_gradient_unsuited)
def positions_gradient(c: Context, request: requests.PositionsGradient) -> None:
    """Zeros, and a copy into a view on them."""
    source = c.present(request.dy)
    target = c.new_plain(request.dx)
    zero = c.constant(np.zeros((), source.dtype))
    c.copy(replace(zero, shape=target.shape, strides=(0,) * len(target.shape)), target)
    c.copy(source, _at(target, request))


@lowers(requests.Broadcast)
def broadcast(c: Context, request: requests.Broadcast) -> None:
    """A view with strides of 0."""
    source, shape = c.present(request.x), c.shape(request.y)
    lead = len(shape) - len(source.shape)
    strides = [0] * lead + [
        stride if extent == wanted else 0
        for extent, stride, wanted in zip(source.shape, source.strides, shape[lead:], strict=True)
    ]
    c.alias(request.y, replace(source, shape=shape, strides=tuple(strides), image=None))


@lowers(requests.Fill)
def fill(c: Context, request: requests.Fill) -> None:
    """A view on one element."""
    shape = c.shape(request.y)
    one = c.constant(np.asarray(request.value))
    c.alias(request.y, replace(one, shape=shape, strides=(0,) * len(shape)))


@lowers(requests.Concat)
def concat(c: Context, request: requests.Concat) -> None:
    """A copy of each operand."""
    axis = request.axis % len(c.shape(request.y))
    sources = [c.present(x) for x in request.operands]
    target = c.new(request.y)
    start = 0
    for source in sources:
        extent = source.shape[axis]
        c.copy(source, sliced(target, axis, start, extent))
        start += extent


def _inside(
    request: requests.Pad, have: Sequence[int], wanted: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """What is cut off before each axis of x, where it starts in y, and how much of it is left."""
    cuts = [max(0, -start) for start in request.before]
    starts = [max(0, start) for start in request.before]
    axes = zip(have, cuts, wanted, starts, strict=True)
    return cuts, starts, [min(n - cut, extent - start) for n, cut, extent, start in axes]


def _pad_unsuited(q: Queries, request: requests.Pad) -> str | None:
    return "elements that are no numbers" if q.dtype(request.x).kind == "O" else None


@lowers(requests.Pad, suits=_pad_unsuited)
def pad(c: Context, request: requests.Pad) -> None:
    """A copy of what is inside, and one of the value for each side of each axis; a view where none is."""
    extents = c.shape(request.y)
    if isinstance(request.value, ir.Value):
        value = c.plain(request.value)
    else:
        value = c.constant(np.asarray(request.value, c.dtype(request.x)))
    cuts, starts, shape = _inside(request, c.shape(request.x), extents)
    if min(shape, default=1) <= 0:  # nothing of x is left
        c.alias(request.y, replace(value, shape=extents, strides=(0,) * len(extents)))
        return
    source = c.present(request.x)
    offset = source.offset + sum(cut * step for cut, step in zip(cuts, source.strides, strict=True))
    inside = replace(source, shape=tuple(shape), offset=offset, image=None)
    if tuple(shape) == extents:
        c.alias(request.y, inside)
        return
    target = c.new(request.y)
    for axis, (start, length) in enumerate(zip(starts, shape, strict=True)):
        for first, count in ((0, start), (start + length, extents[axis] - start - length)):
            if count > 0:
                around = sliced(target, axis, first, count)
                c.copy(replace(value, shape=around.shape, strides=(0,) * len(extents)), around)
        target = sliced(target, axis, start, length)
    c.copy(inside, target)


@lowers(requests.Tile)
def tile(c: Context, request: requests.Tile) -> None:
    """A copy from a view that walks along the operand again and again."""
    source, target = c.present(request.x), c.new_plain(request.y)
    shape = tuple(n for pair in zip(request.repeats, source.shape, strict=True) for n in pair)
    steps = tuple(n for stride in source.strides for n in (0, stride))
    c.copy(replace(source, shape=shape, strides=steps, image=None), gapless(target, shape))


def _convert_unsuited(q: Queries, request: requests.Convert) -> str | None:
    source, target = q.dtype(request.x), q.dtype(request.y)
    if source == target:
        return None
    if reason := q.empty(request.x):
        return reason
    if "float16" in (source.name, target.name) and not q.target.converts_halves:
        return "the processor does not convert float16"
    if source.name in STORAGE and target.name in STORAGE:
        return None
    if object in (source, target) or request.kernel is None:
        return f"{source} to {target}"
    return None


@lowers(requests.Convert, suits=_convert_unsuited)
def convert(c: Context, request: requests.Convert) -> None:
    """The same memory, one pass, or a table."""
    source, target = c.dtype(request.x), c.dtype(request.y)
    if source == target:
        c.alias(request.y, c.present(request.x))
        return
    x, y = c.plain(request.x), c.new_plain(request.y)
    if source.name in STORAGE and target.name in STORAGE:
        _convert(c, x, y)
        return
    assert request.kernel is not None
    if source.itemsize > 2 and target.name not in _FEW_FLOATS:
        x = _converted(c, x, np.dtype(np.int8))
    elif source.itemsize > 2 and source != np.float32:
        x = _converted(c, x, np.dtype(np.float32))
    table = c.constant(_table(x.dtype, target, request.kernel))
    spec = Lookup(x.dtype.itemsize, target.itemsize)
    slots: dict[str, Slot] = {"x": x, "table": table, "y": y, "batch": x.size}
    c.call(_lookup(spec, c.target), slots, batch=x.size)


def _convert(c: Context, x: Tensor, y: Tensor) -> None:
    slots: dict[str, Slot] = {"x": x, "y": y, "batch": x.size}
    c.call(_conversion(x.dtype.name, y.dtype.name, c.target), slots, batch=x.size)


def _converted(c: Context, x: Tensor, dtype: np.dtype[np.generic]) -> Tensor:
    """A tensor in another type, in memory of its own."""
    y = gapless(c.vector(x.size, dtype), x.shape)
    _convert(c, x, y)
    return y


_FEW_FLOATS = frozenset(name for name in dir(ml_dtypes) if name.startswith(("float8", "float4", "float6")))
"""Floats of at most one byte: other types of that size are integers, whose last bits count."""


def _table(source: np.dtype[Any], target: np.dtype[Any], kernel: Callable[[Array], Array]) -> Array:
    """What each number of a type becomes: of float32, each that has 16 bits."""
    if source.itemsize == 1:
        numbers = np.arange(1 << 8, dtype=np.uint8).view(source)
    else:
        numbers = np.arange(1 << 16, dtype=np.uint16).view(
            ml_dtypes.bfloat16 if source == np.float32 else source
        )
        numbers = numbers.astype(np.float32) if source == np.float32 else numbers
    with np.errstate(all="ignore"):
        return kernel(numbers)
