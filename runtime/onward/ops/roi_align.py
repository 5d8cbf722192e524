from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.errors import LimitError, ShapeError, UnsupportedError
from onward.graph import Array, Builder, Op, dims_of, dtype_of, numpy_dtype, op, requests
from onward.graph.memory import too_large
from onward.graph.requests import Static, Values
from onward.ops._floats import widened

_MOST = 1 << 12
"""Points along an axis of a bin that may be asked for."""

_MANY = 1 << 16
"""Points along an axis of a region from which on those outside the image are left out."""


@op("RoiAlign", since=10)
class RoiAlign10(Op):
    """RoiAlign whose regions are not moved by half a pixel."""

    mode: str = "avg"
    output_height: int = 1
    output_width: int = 1
    sampling_ratio: int = 0
    spatial_scale: float = 1.0

    def canonical(self, g: Builder, X: ir.Value, rois: ir.Value, batch_indices: ir.Value) -> ir.Value:
        return g.RoiAlign(
            X,
            rois,
            batch_indices,
            coordinate_transformation_mode="output_half_pixel",
            mode=self.mode,
            output_height=self.output_height,
            output_width=self.output_width,
            sampling_ratio=self.sampling_ratio,
            spatial_scale=self.spatial_scale,
        )


@op("RoiAlign", since=(16, 22))
class RoiAlign(Op):
    """Each region of an image in bins: the mean, or the maximum, of points read between pixels.

    Points more than a pixel outside are 0, others are brought inside. The maximum is that of the four
    weighted pixels of every point. The gradient, of the mean, is by X alone, as in torchvision.
    """

    coordinate_transformation_mode: str = "half_pixel"
    mode: str = "avg"
    output_height: int = 1
    output_width: int = 1
    sampling_ratio: int = 0
    spatial_scale: float = 1.0

    def _is_maximum(self) -> bool:
        known = ("half_pixel", "output_half_pixel")
        if self.mode not in ("avg", "max") or self.coordinate_transformation_mode not in known:
            raise ShapeError(
                f"mode {self.mode!r} and coordinate_transformation_mode "
                f"{self.coordinate_transformation_mode!r}: modes are avg and max, transformations "
                f"{' and '.join(known)}"
            )
        if self.sampling_ratio > _MOST:
            raise ShapeError(f"sampling_ratio is {self.sampling_ratio}; at most {_MOST} points along a bin")
        return self.mode == "max"

    @widened
    def kernel(self, X: Array, rois: Array, batch_indices: Array) -> Array:
        maximum = self._is_maximum()
        if X.ndim != 4 or rois.ndim != 2 or rois.shape[1] != 4 or batch_indices.shape != rois.shape[:1]:
            raise ShapeError(
                f"X {list(X.shape)}, rois {list(rois.shape)}, batch_indices {list(batch_indices.shape)}: "
                "they take [N, C, H, W], [R, 4] and [R]"
            )
        if len(rois) and not (0 <= batch_indices.min() and batch_indices.max() < len(X)):
            raise ShapeError(
                f"batch indices {batch_indices.min()} to {batch_indices.max()} for {len(X)} images"
            )
        bins = self.output_height, self.output_width
        y = np.zeros((len(rois), X.shape[1], *bins), X.dtype)
        offset = 0.5 if self.coordinate_transformation_mode == "half_pixel" else 0.0
        for r, (roi, n) in enumerate(zip(rois, batch_indices, strict=True)):
            low = roi[1::-1] * X.dtype.type(self.spatial_scale) - X.dtype.type(offset)
            span = roi[3:1:-1] * X.dtype.type(self.spatial_scale) - X.dtype.type(offset) - low
            if not offset:
                span = np.maximum(span, 1)
            if not np.all(np.isfinite(span)):
                y[r] = np.nan
                continue
            rows, columns = (
                self._points(low[a], span[a], bins[a], X.shape[2 + a], X.dtype) for a in range(2)
            )
            if not rows[0].size or not columns[0].size:
                continue
            found = []
            points = bins[0] * rows[0].shape[1] * bins[1] * columns[0].shape[1]
            if (reason := too_large(4 * points * X.shape[1] * X.dtype.itemsize)) is not None:
                raise LimitError(reason)
            for row, row_weight in zip(rows[:2], rows[2:4], strict=True):
                for column, weight in zip(columns[:2], columns[2:4], strict=True):
                    pixels = X[n][:, row[:, :, None, None], column]
                    found.append(pixels * (row_weight[:, :, None, None] * weight))
            if maximum:
                y[r] = np.max(np.maximum.reduce(found), axis=(2, 4))
                if rows[0].shape[1] < rows[4] or columns[0].shape[1] < columns[4]:
                    y[r] = np.maximum(y[r], 0)  # points that were left out count as 0
            else:
                y[r] = sum(found).sum(axis=(2, 4)) / (rows[4] * columns[4])
        return y

    def _points(
        self, low: float, span: float, bins: int, extent: int, dtype: np.dtype[np.generic]
    ) -> tuple[Array, Array, Array, Array, int]:
        """Two pixels and their weights for each point [bins, points] along an axis, and how many a bin has.

        Of a region far larger than its image, those points are left out that are outside in every bin.
        """
        size = span / bins
        count = self.sampling_ratio if self.sampling_ratio > 0 else max(0, math.ceil(size))
        starts = low + np.arange(bins)[:, None] * size
        if count * bins > _MANY and size > 0:
            gap = float(size) / count
            before = np.floor((-1 - starts) / gap - 0.5) - 1
            kept = min(count, math.ceil((extent + 1) / gap) + 4)
            points = np.clip(before, 0, count - kept).astype(np.int64) + np.arange(kept)
        else:
            points = np.arange(count)[None]
        at = starts + (points + 0.5) * size / max(count, 1)
        there = (at >= -1) & (at <= extent)
        at = np.where(there, np.clip(at, 0, extent - 1), 0)
        first = np.floor(at).astype(np.int64)
        share = at - first
        weights = (there * (1 - share)).astype(dtype), (there * share).astype(dtype)
        return first, np.minimum(first + 1, extent - 1), *weights, count

    def lower(
        self, static: Static, outputs: Values, X: ir.Value, rois: ir.Value, batch_indices: ir.Value
    ) -> requests.Request:
        numbers = (
            self._is_maximum(),
            self.coordinate_transformation_mode == "half_pixel",
            self.sampling_ratio,
            self.spatial_scale,
        )
        regions = static.shape(rois)[:1]
        shapes = (
            (X, (None, None, None, None)),
            (rois, (*regions, 4)),
            (batch_indices, regions),
        )
        images = ((batch_indices, static.shape(X)[0]),)
        return requests.Loop(
            (outputs[0],), (X, rois, batch_indices), _aligned, numbers, indices=images, shapes=shapes
        )

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value, rois: ir.Value, batch_indices: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        dims = dims_of(X)
        extents = [] if dims is None else [d for d in dims[2:] if isinstance(d, int)]
        if len(extents) != 2 or self.mode != "avg" or self.sampling_ratio <= 0:
            raise UnsupportedError(
                "the gradient of RoiAlign needs mode avg, a sampling_ratio above 0 and static extents of X"
            )
        rows = self._matrix(g, rois, 0, self.output_height, extents[0])
        columns = self._matrix(g, rois, 1, self.output_width, extents[1])
        # [R, 1, H, bins] · [R, C, bins, bins] · [R, 1, bins, W]
        spread = g.MatMul(g.MatMul(g.Transpose(rows, perm=[0, 1, 3, 2]), dy), columns)
        return g.onward.GatherGrad(spread, batch_indices, g.shape(X), axis=0), None, None

    def _matrix(self, g: Builder, rois: ir.Value, axis: int, bins: int, extent: int) -> ir.Value:
        """How much of each pixel is in each bin along an axis, [R, 1, bins, extent]."""
        dtype, count = numpy_dtype(dtype_of(rois)), self.sampling_ratio
        half = self.coordinate_transformation_mode == "half_pixel"
        low, high = (
            g.Sub(g.Mul(g.Gather(rois, [k], axis=1), self.spatial_scale), 0.5 if half else 0.0)
            for k in (1 - axis, 3 - axis)
        )
        span = g.Sub(high, low) if half else g.Max(g.Sub(high, low), 1.0)
        steps = (np.arange(bins)[:, None] + (np.arange(count) + 0.5) / count) / bins
        points = g.Add(low, g.Mul(span, g.const(steps.reshape(1, -1).astype(dtype))))
        outside = g.Or(g.Less(points, -1.0), g.Greater(points, float(extent)))
        inside = g.Clip(points, 0.0, extent - 1.0)
        distance = g.Abs(g.Sub(g.Unsqueeze(inside, [2]), g.const(np.arange(extent).astype(dtype))))
        weights = g.Where(g.Unsqueeze(outside, [2]), 0.0, g.Relu(g.Sub(1.0, distance)))
        shares = g.Reshape(weights, [-1, bins, count, extent])
        return g.Unsqueeze(g.ReduceMean(shares, [2], keepdims=0), [1])


def _aligned(
    thread: int,
    threads: int,
    y: Array,
    X: Array,
    rois: Array,
    batch_indices: Array,
    maximum: bool,
    half: bool,
    ratio: int,
    scale: float,
) -> None:
    """Regions and channels are shared out."""
    regions, channels, height, width = y.shape
    offset = 0.5 if half else 0.0
    for unit in range(regions * channels * thread // threads, regions * channels * (thread + 1) // threads):
        r, c = unit // channels, unit % channels
        n = batch_indices[r]
        low_v, low_u = rois[r, 1] * scale - offset, rois[r, 0] * scale - offset
        span_v, span_u = rois[r, 3] * scale - offset - low_v, rois[r, 2] * scale - offset - low_u
        if not half:
            span_v, span_u = max(span_v, 1.0), max(span_u, 1.0)
        step_v, step_u = span_v / height, span_u / width
        if not (math.isfinite(step_v) and math.isfinite(step_u)):
            y[r, c] = np.nan
            continue
        count_v = ratio if ratio > 0 else max(0, math.ceil(min(step_v, 1e15)))
        count_u = ratio if ratio > 0 else max(0, math.ceil(min(step_u, 1e15)))
        for i in range(height):
            from_v, to_v = _within(low_v + i * step_v, step_v, count_v, X.shape[2])
            for j in range(width):
                from_u, to_u = _within(low_u + j * step_u, step_u, count_u, X.shape[3])
                total = 0.0
                for a in range(from_v, to_v):
                    v = low_v + i * step_v + (a + 0.5) * step_v / count_v
                    for b in range(from_u, to_u):
                        u = low_u + j * step_u + (b + 0.5) * step_u / count_u
                        found = 0.0
                        if -1 <= v <= X.shape[2] and -1 <= u <= X.shape[3]:
                            found = _between(X, n, c, v, u, maximum)
                        if not maximum:
                            total += found
                        elif a == from_v and b == from_u:
                            total = found
                        else:
                            total = max(total, found)
                if maximum and (to_v - from_v < count_v or to_u - from_u < count_u):
                    total = max(total, 0.0)  # points that were left out count as 0
                if not maximum and count_v > 0 and count_u > 0:
                    total /= float(count_v) * float(count_u)
                y[r, c, i, j] = total


def _within(start: float, step: float, count: int, extent: int) -> tuple[int, int]:
    """The points of a bin between which all are that may be inside the image."""
    if count == 0 or not step > 0:
        return 0, count
    gap = step / count
    first = math.floor(min(max((-1 - start) / gap - 1.5, 0.0), float(count)))
    end = math.ceil(min(max((extent - start) / gap + 1.5, float(first)), float(count)))
    return first, end


def _between(X: Array, n: int, c: int, v: float, u: float, maximum: bool) -> float:
    """The value between four pixels, or the largest of the four weighted."""
    v, u = min(max(v, 0.0), X.shape[2] - 1.0), min(max(u, 0.0), X.shape[3] - 1.0)
    row, column = math.floor(v), math.floor(u)
    below, beside = min(row + 1, X.shape[2] - 1), min(column + 1, X.shape[3] - 1)
    p, q = v - row, u - column
    first, second = (1 - p) * (1 - q) * X[n, c, row, column], (1 - p) * q * X[n, c, row, beside]
    third, fourth = p * (1 - q) * X[n, c, below, column], p * q * X[n, c, below, beside]
    if maximum:
        return max(max(first, second), max(third, fourth))
    return first + second + third + fourth
