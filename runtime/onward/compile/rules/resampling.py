"""Resampling along axes: two spatial axes of an image at once, or one axis after the other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import numpy as np

from onward.compile.context import Context, Queries
from onward.compile.geometry import image
from onward.compile.items import Slot
from onward.compile.kernels import resample as kernels
from onward.compile.kernels.layout import Image
from onward.compile.kernels.resample import Grid, Taps
from onward.compile.registry import lowers
from onward.compile.tensors import Buffer, Tensor
from onward.graph import Resampling
from onward.graph.requests import Resample

__all__: list[str] = []

_resample = functools.lru_cache(512)(kernels.resample)

_TOGETHER = 6
"""Terms of a pixel up to which two axes are resampled in one pass; above, the sums are nested."""

_Line: TypeAlias = "Resampling | None"


def _unsuited(q: Queries, request: Resample) -> str | None:
    return q.not_floats(request.x) or q.empty(request.x, request.y)


@lowers(Resample, suits=_unsuited)
def resample(c: Context, request: Resample) -> None:
    """Passes over the values, each along one axis or two neighbouring ones."""
    if request.channels_last and c.has_image(request.x) and c.has_image(request.y):
        _images(c, request)
    else:
        _rows(c, request)


def _images(c: Context, request: Resample) -> None:
    """Channels-last: rows are the axis before the last, columns the last."""
    source, target = c.image(request.x), c.new_image(request.y)
    assert source.image is not None
    assert target.image is not None
    rank, batch, dtype = len(source.shape), source.shape[0], source.dtype
    have, at = source.image, source.buffer
    passes = _passes([(axis - rank + 2, line) for axis, line in request.lines])
    for number, (rows, columns) in enumerate(passes):
        if number == len(passes) - 1:
            want, sink = target.image, target.buffer
        else:
            height, width = _out(rows, have.height), _out(columns, have.width)
            want = image((batch, have.channels, height, width))
            sink = c.scratch(batch * want.size, dtype)
        grid = Grid(
            (have.size, have.row, have.pixel),
            (want.size, want.row, want.pixel),
            _taps(rows, want.height),
            _taps(columns, want.width),
            have.channels,
            dtype.name,
        )
        _call(c, grid, rows, columns, _window(at, have, dtype), _window(sink, want, dtype), batch)
        have, at = want, sink


def _rows(c: Context, request: Resample) -> None:
    """ONNX's order: what is behind the axes is inside a pixel."""
    source = c.plain(request.x)
    shape, at = list(source.shape), source
    target = c.new_plain(request.y)
    for number, (axis, line) in enumerate(request.lines):
        after = list(shape)
        after[axis] = line.out
        batch, inner = prod(shape[:axis]), prod(shape[axis + 1 :])
        last = number == len(request.lines) - 1
        sink = target if last else c.vector(prod(after), source.dtype)
        if inner == 1:  # columns: their pixels follow each other
            grid = Grid(
                (shape[axis], 0, 1), (line.out, 0, 1), Taps(1), _taps(line, line.out), 1, source.dtype.name
            )
            _call(c, grid, None, line, at, sink, batch)
        else:
            grid = Grid(
                (shape[axis] * inner, inner, 0),
                (line.out * inner, inner, 0),
                _taps(line, line.out),
                Taps(1),
                inner,
                source.dtype.name,
            )
            _call(c, grid, line, None, at, sink, batch)
        shape, at = after, sink


def _passes(lines: Sequence[tuple[int, Resampling]]) -> list[tuple[_Line, _Line]]:
    """Rows and columns of each pass: both at once where a pixel has few terms."""
    if len(lines) == 2 and prod(line.most for _, line in lines) <= _TOGETHER:
        both = dict(lines)
        return [(both[0], both[1])]
    return [(line, None) if axis == 0 else (None, line) for axis, line in lines]


def _out(line: _Line, extent: int) -> int:
    return extent if line is None else line.out


def _taps(line: _Line, extent: int) -> Taps:
    if line is None:
        return Taps(extent)
    weighted = bool(np.any(line.weights != 1))
    return Taps(extent, True, line.taps, weighted, line.outside is not None)


def _window(buffer: Buffer, image: Image, dtype: np.dtype[np.generic]) -> Tensor:
    """From an image's first pixel on."""
    return Tensor(buffer, (image.elements,), (1,), dtype, image.origin)


def _call(
    c: Context, grid: Grid, rows: _Line, columns: _Line, source: Tensor, target: Tensor, batch: int
) -> None:
    slots: dict[str, Slot] = {"x": source, "y": target, "batch": batch}
    for name, line, taps in (("rows", rows, grid.rows), ("columns", columns, grid.columns)):
        if line is None:
            continue
        slots[f"{name}_index"] = c.constant(line.indices)
        if taps.taps is None:
            slots[f"{name}_start"] = c.constant(line.starts)
        if taps.weighted:
            slots[f"{name}_weight"] = c.constant(line.weights.astype(source.dtype))
        if line.outside is not None:
            slots[f"{name}_outside"] = c.constant(line.outside.astype(source.dtype))
    c.call(_resample(grid, c.target), slots, batch=batch)
