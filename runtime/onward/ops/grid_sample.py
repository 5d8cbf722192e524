from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._floats import widened
from onward.ops._sampling import Arrays, Graph, Sampling, corners, taps

_MODES = ("nearest", "linear", "cubic")
_PADDINGS = ("zeros", "border", "reflection")


@op("GridSample", since=16)
class GridSample16(Op):
    """GridSample whose modes are called bilinear and bicubic."""

    align_corners: int = 0
    mode: str = "bilinear"
    padding_mode: str = "zeros"

    def canonical(self, g: Builder, X: ir.Value, grid: ir.Value) -> ir.Value:
        return g.GridSample(
            X,
            grid,
            align_corners=self.align_corners,
            mode=self.mode.removeprefix("bi"),
            padding_mode=self.padding_mode,
        )


@op("GridSample", since=(20, 22))
class GridSample(Op):
    """Y[n, c, p] = X[n, c] at the coordinates grid[n, p], from −1 to 1, the last axis of X first.

    By grid, at whole coordinates: the slope of the pixels from there on, as in torch; 0 outside with padding
    border; the slope by grid of mode nearest is 0.
    """

    align_corners: int = 0
    mode: str = "linear"
    padding_mode: str = "zeros"

    def how(self) -> Sampling:
        """The attributes.

        Raises:
            ShapeError: one of them is unknown.
        """
        if self.mode not in _MODES or self.padding_mode not in _PADDINGS:
            raise ShapeError(
                f"mode {self.mode!r} and padding_mode {self.padding_mode!r}: modes are {', '.join(_MODES)}, "
                f"paddings {', '.join(_PADDINGS)}"
            )
        return Sampling(self.mode, self.padding_mode, bool(self.align_corners))

    def _axes(self, m: Any, coordinates: list[Any], extents: tuple[int, ...]) -> list[list[Any]]:
        how = self.how()
        scales = [(n - 1 if how.align_corners else n) / 2 for n in extents]
        shift = 0.0 if how.align_corners else -0.5
        return [
            taps(m, m.add(m.mul(m.add(x, 1.0), scale), shift), extent, how)
            for x, scale, extent in zip(coordinates, scales, extents, strict=True)
        ]

    @widened
    def kernel(self, X: Array, grid: Array) -> Array:
        extents = X.shape[2:]
        if grid.ndim != X.ndim or grid.shape[-1] != len(extents) or grid.shape[0] != X.shape[0]:
            raise ShapeError(f"a grid {list(grid.shape)} does not fit X {list(X.shape)}")
        points = math.prod(grid.shape[1:-1])
        flat = X.reshape(*X.shape[:2], math.prod(extents))
        work = X.dtype if X.dtype.kind == "f" else np.dtype(np.float64)
        y = np.zeros((*X.shape[:2], points), work)
        places = grid.reshape(X.shape[0], points, len(extents)).astype(work, copy=False)
        if y.size:
            m = Arrays()
            axes = self._axes(m, [places[..., -1 - a] for a in range(len(extents))], extents)
            for place, weight, _ in corners(m, axes, extents):
                share = np.broadcast_to(np.asarray(weight, work), place.shape)
                y += np.take_along_axis(flat, place[:, None], 2) * share[:, None]
        return y.reshape(*X.shape[:2], *grid.shape[1:-1]).astype(X.dtype, copy=False)

    def lower(self, static: Static, outputs: Values, X: ir.Value, grid: ir.Value) -> requests.Request:
        how, rank = self.how(), len(static.shape(X)) - 2
        if rank not in (2, 3):
            return requests.Unsupported(f"{rank} spatial axes")
        reach = (how.reach, _PADDINGS.index(how.padding_mode), how.align_corners)
        loop = _planes if rank == 2 else _volumes
        work = math.prod(static.shape(outputs[0])) * 2 * how.reach**rank
        return requests.Loop((outputs[0],), (X, grid), loop, reach, flops=work)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value, grid: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        dims = dims_of(X)
        extents = () if dims is None else tuple(d for d in dims[2:] if isinstance(d, int))
        if dims is None or len(extents) != len(dims) - 2:
            raise UnsupportedError("the gradient of GridSample needs static spatial extents of X")
        m, rank = Graph(g, dtype_of(grid)), len(extents)
        places = g.Reshape(grid, g.Concat(g.dim(grid, 0), [-1, rank], axis=0))
        coordinates = [g.Gather(places, -1 - a, axis=2) for a in range(rank)]
        flat = g.Reshape(X, g.Concat(g.dim(X, 0), g.dim(X, 1), [math.prod(extents)], axis=0))
        seed = g.Reshape(dy, g.Concat(g.dim(X, 0), g.dim(X, 1), [-1], axis=0))
        dflat = g.zeros_like(flat)
        slopes: list[ir.Value | None] = [None] * rank
        for place, weight, along in corners(m, self._axes(m, coordinates, extents), extents):
            index = g.Expand(g.Unsqueeze(place, [1]), g.Shape(seed))
            share = g.Mul(seed, g.Unsqueeze(weight, [1]) if isinstance(weight, ir.Value) else weight)
            dflat = g.ScatterElements(dflat, index, share, axis=2, reduction="add")
            if self.mode == "nearest":
                continue
            pixel = g.ReduceSum(g.Mul(seed, g.GatherElements(flat, index, axis=2)), [1], keepdims=0)
            for axis, slope in enumerate(along):
                term = g.Mul(pixel, slope)
                before = slopes[axis]
                slopes[axis] = term if before is None else g.Add(before, term)
        dX = g.reshape_like(dflat, X)
        if self.mode == "nearest":
            return dX, g.zeros_like(grid)
        scales = [(n - 1 if self.align_corners else n) / 2 for n in extents]
        parts = [g.Unsqueeze(g.Mul(s, k), [2]) for s, k in zip(slopes, scales, strict=True) if s is not None]
        return dX, g.reshape_like(g.Concat(*reversed(parts), axis=2), grid)


def _planes(
    thread: int, threads: int, y: Array, X: Array, grid: Array, reach: int, padding: int, align: bool
) -> None:
    """Two spatial axes; pixels of the result are shared out."""
    batch, channels, height, width = X.shape
    rows, columns = grid.shape[1], grid.shape[2]
    points = rows * columns
    for unit in range(batch * points * thread // threads, batch * points * (thread + 1) // threads):
        n, p = unit // points, unit % points
        i, j = p // columns, p % columns
        for c in range(channels):
            y[n, c, i, j] = 0
        v = _coordinate(grid[n, i, j, 1], height, reach, padding, align)
        u = _coordinate(grid[n, i, j, 0], width, reach, padding, align)
        below, left = math.floor(v), math.floor(u)
        for a in range(reach):
            row = _pixel(below + a - (reach - 1) // 2, height, padding, align)
            if row < 0:
                continue
            weight = _share(v - below, a, reach)
            for b in range(reach):
                column = _pixel(left + b - (reach - 1) // 2, width, padding, align)
                if column >= 0:
                    factor = weight * _share(u - left, b, reach)
                    for c in range(channels):
                        y[n, c, i, j] += factor * X[n, c, row, column]


def _volumes(
    thread: int, threads: int, y: Array, X: Array, grid: Array, reach: int, padding: int, align: bool
) -> None:
    """Three spatial axes; pixels of the result are shared out."""
    batch, channels, depth, height, width = X.shape
    rows, columns = grid.shape[2], grid.shape[3]
    points = grid.shape[1] * rows * columns
    for unit in range(batch * points * thread // threads, batch * points * (thread + 1) // threads):
        n, p = unit // points, unit % points
        k, i, j = p // (rows * columns), p // columns % rows, p % columns
        for c in range(channels):
            y[n, c, k, i, j] = 0
        w = _coordinate(grid[n, k, i, j, 2], depth, reach, padding, align)
        v = _coordinate(grid[n, k, i, j, 1], height, reach, padding, align)
        u = _coordinate(grid[n, k, i, j, 0], width, reach, padding, align)
        front, below, left = math.floor(w), math.floor(v), math.floor(u)
        for e in range(reach):
            plane = _pixel(front + e - (reach - 1) // 2, depth, padding, align)
            if plane < 0:
                continue
            outer = _share(w - front, e, reach)
            for a in range(reach):
                row = _pixel(below + a - (reach - 1) // 2, height, padding, align)
                if row < 0:
                    continue
                weight = outer * _share(v - below, a, reach)
                for b in range(reach):
                    column = _pixel(left + b - (reach - 1) // 2, width, padding, align)
                    if column >= 0:
                        factor = weight * _share(u - left, b, reach)
                        for c in range(channels):
                            y[n, c, k, i, j] += factor * X[n, c, plane, row, column]


_FARTHEST = 1e9
"""Coordinates beyond are as good as this one, and NaN is: positions are whole numbers of 64 bits."""


def _coordinate(x: float, extent: int, reach: int, padding: int, align: bool) -> float:
    """Where in pixels a normalized coordinate is read."""
    scaled = (x + 1) * ((extent - 1) / 2) if align else (x + 1) * (extent / 2) - 0.5
    if not abs(scaled) < _FARTHEST:
        scaled = -_FARTHEST
    if reach == 1:
        scaled = float(np.rint(scaled))
    low, high = (0.0, extent - 1.0) if align else (-0.5, extent - 0.5)
    if padding == 1:
        return 0.0 if scaled < low else extent - 1.0 if scaled > high else scaled
    return _mirrored(scaled, low, high) if padding == 2 else scaled


def _mirrored(x: float, low: float, high: float) -> float:
    span = high - low
    if span == 0:
        return low
    around = (x - low) - math.floor((x - low) / (2 * span)) * (2 * span)
    return low + (2 * span - around if around > span else around)


def _pixel(i: int, extent: int, padding: int, align: bool) -> int:
    """The pixel that is read for i; −1 for none."""
    if padding == 0:
        return i if 0 <= i < extent else -1
    if padding == 2:
        low, high = (0.0, extent - 1.0) if align else (-0.5, extent - 0.5)
        i = int(_mirrored(float(i), low, high))
    return min(max(i, 0), extent - 1)


def _share(f: float, k: int, reach: int) -> float:
    """The weight of tap k of so many, f above the pixel below the coordinate."""
    if reach == 1:
        return 1.0
    if reach == 2:
        return f if k == 1 else 1 - f
    a, d = -0.75, abs(f - (k - 1))
    if k in (1, 2):
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
