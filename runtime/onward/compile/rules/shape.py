"""What moves elements without computing: windows on memory where one does, else copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onward.compile.kernels.expression import operand
from onward.compile.tensors import Tensor, row_major

if TYPE_CHECKING:
    from onward.compile.lowering import Lowering

__all__ = ["concat", "convert", "expand", "fill", "forward", "pad", "slices", "tile", "transpose"]

_CONVERTED = frozenset({"float32", "int64", "int32", "uint8", "bool"})


def forward(b: Lowering, y: ir.Value, x: ir.Value) -> None:
    """y = x."""
    b.alias(y, b.present(x))


def transpose(b: Lowering, y: ir.Value, x: ir.Value, perm: Sequence[int]) -> None:
    """Axis i of y is axis perm[i] of x."""
    source = b.present(x)
    shape, strides = (tuple(s[a] for a in perm) for s in (source.shape, source.strides))
    b.alias(y, replace(source, shape=shape, strides=strides, image=None))


def slices(b: Lowering, y: ir.Value, x: ir.Value, picked: Sequence[slice]) -> None:
    """y = x[picked], a slice for each axis."""
    source = b.present(x)
    offset, shape, strides = source.offset, [], []
    for cut, extent, stride in zip(picked, source.shape, source.strides, strict=True):
        positions = range(extent)[cut]
        offset += stride * (positions.start if positions else 0)
        shape.append(len(positions))
        strides.append(stride * positions.step)
    window = replace(source, shape=tuple(shape), strides=tuple(strides), offset=offset, image=None)
    b.alias(y, window)


def _part(whole: Tensor, axis: int, start: int, extent: int) -> Tensor:
    """Positions start to start + extent of an axis; it stays known whether the tensor is channels-last."""
    shape = (*whole.shape[:axis], extent, *whole.shape[axis + 1 :])
    return replace(whole, shape=shape, offset=whole.offset + start * whole.strides[axis])


def concat(b: Lowering, y: ir.Value, inputs: Sequence[ir.Value], axis: int) -> None:
    """The inputs one behind the other along an axis."""
    axis %= len(b.shape(y))
    sources = [b.present(x) for x in inputs]
    target = b.new(y)
    start = 0
    for source in sources:
        extent = source.shape[axis]
        b.copy(source, _part(target, axis, start, extent))
        start += extent


def pad(b: Lowering, y: ir.Value, x: ir.Value, before: Sequence[int], value: float) -> None:
    """x inside y from `before` on along each axis, what is negative cut off; `value` around it."""
    b.require_float(x)
    b.require_elements(x, y)
    source = b.present(x)
    extents = b.shape(y)
    offset, shape, starts = source.offset, [], []
    for axis, (start, extent) in enumerate(zip(before, extents, strict=True)):
        cut = max(0, -start)
        offset += cut * source.strides[axis]
        starts.append(max(0, start))
        shape.append(min(source.shape[axis] - cut, extent - starts[-1]))
    if min(shape) <= 0:
        b.decline("nothing is left inside the pads")
    inside = replace(source, shape=tuple(shape), offset=offset, image=None)
    if tuple(shape) == extents:
        b.alias(y, inside)
        return
    fill, target = b.constant(np.asarray(value, np.float32)), b.new(y)
    for axis, (start, length) in enumerate(zip(starts, shape, strict=True)):
        for first, count in ((0, start), (start + length, extents[axis] - start - length)):
            if count > 0:
                around = _part(target, axis, first, count)
                b.copy(replace(fill, shape=around.shape, strides=(0,) * len(extents)), around)
        target = _part(target, axis, start, length)
    b.copy(inside, target)


def expand(b: Lowering, y: ir.Value, x: ir.Value) -> None:
    """x broadcast to y's shape."""
    source, shape = b.present(x), b.shape(y)
    lead = len(shape) - len(source.shape)
    strides = [0] * lead + [
        stride if extent == wanted else 0
        for extent, stride, wanted in zip(source.shape, source.strides, shape[lead:], strict=True)
    ]
    b.alias(y, replace(source, shape=shape, strides=tuple(strides), image=None))


def tile(b: Lowering, y: ir.Value, x: ir.Value, repeats: Sequence[int]) -> None:
    """x repeated along each axis."""
    source, target = b.present(x), b.new_plain(y)
    pairs = [n for pair in zip(repeats, source.shape, strict=True) for n in pair]
    steps = [n for stride in source.strides for n in (0, stride)]
    shape = tuple(pairs)
    b.copy(
        replace(source, shape=shape, strides=tuple(steps), image=None),
        replace(target, shape=shape, strides=row_major(shape)),
    )


def fill(b: Lowering, y: ir.Value, value: np.generic) -> None:
    """One value everywhere."""
    shape = b.shape(y)
    one = b.constant(np.asarray(value))
    b.alias(y, replace(one, shape=shape, strides=(0,) * len(shape)))


def convert(b: Lowering, y: ir.Value, x: ir.Value) -> None:
    """x in y's element type, where that is float32 or the same.

    Integers are rounded to float32 as NumPy does. Floats to integers are left to NumPy, as what becomes of
    numbers that do not fit is not the same on every processor.
    """
    source, target = b.program.dtypes[x], b.program.dtypes[y]
    if source == target:
        forward(b, y, x)
        return
    b.require_elements(x)
    if target != np.float32 or source.name not in _CONVERTED:
        b.decline(f"{source} to {target}")
    tensor = b.plain(x)
    b.elements(tensor.shape, [tensor], [b.new_plain(y)], [operand(0)])
