from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, numpy_dtype, op, requests
from onward.graph.requests import Static, Values
from onward.ops._regions import best, bounds, check_regions
from onward.ops._shape import require_shape


@op("MaxRoiPoolGrad", since=1, domain=ONWARD_DOMAIN)
class MaxRoiPoolGrad(Op):
    """dX: each element of dY [R, C, *pooled_shape] goes to its bin's first maximum in X [N, C, H, W].

    rois and the attributes are MaxRoiPool's.
    """

    pooled_shape: tuple[int, ...]
    spatial_scale: float = 1.0

    def kernel(self, dY: Array, X: Array, rois: Array) -> Array:
        check_regions(X.shape, rois, self.pooled_shape)
        require_shape("dY", dY, (len(rois), X.shape[1], *self.pooled_shape))
        dX = np.zeros_like(X)
        for r, roi in enumerate(rois):
            n = int(roi[0])
            rows, columns = (
                [bounds(roi[2 - a], roi[4 - a], self.spatial_scale, p, X.shape[2 + a], i) for i in range(p)]
                for a, p in enumerate(self.pooled_shape)
            )
            for i, (top, bottom) in enumerate(rows):
                for j, (left, right) in enumerate(columns):
                    if top < bottom and left < right:
                        window = X[n, :, top:bottom, left:right].reshape(X.shape[1], -1)
                        row, column = np.divmod(window.argmax(1), right - left)
                        dX[n, np.arange(X.shape[1]), top + row, left + column] += dY[r, :, i, j]
        return dX

    def infer(
        self, dY: ir.Value, X: ir.Value, rois: ir.Value
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(dtype_of(X), dims_of(X))]

    def lower(
        self, static: Static, outputs: Values, dY: ir.Value, X: ir.Value, rois: ir.Value
    ) -> requests.Request:
        regions, channels = static.shape(rois)[0], static.shape(X)[1]
        shapes = (
            (X, (None, None, None, None)),
            (rois, (regions, 5)),
            (dY, (regions, channels, *self.pooled_shape)),
        )
        return requests.Loop((outputs[0],), (dY, X, rois), _spread, (self.spatial_scale,), shapes=shapes)

    def expand(self, g: Builder, dY: ir.Value, X: ir.Value, rois: ir.Value) -> ir.Value:
        extents = [d for d in (dims_of(X) or ())[2:] if isinstance(d, int)]
        if len(extents) != 2:
            raise UnsupportedError("MaxRoiPoolGrad needs static extents of X for standard operators")
        images = g.Cast(g.Gather(rois, 0, axis=1), to=int(ir.DataType.INT64))
        inside = [self._inside(g, rois, a, self.pooled_shape[a], extents[a]) for a in range(2)]
        # [R, 1, high, 1, H, 1] and [R, 1, 1, wide, 1, W]
        mask = g.And(g.Unsqueeze(inside[0], [1, 3, 5]), g.Unsqueeze(inside[1], [1, 2, 4]))
        seen = g.Where(mask, g.Unsqueeze(g.Gather(X, images, axis=0), [2, 3]), -np.inf)
        pixels = extents[0] * extents[1]
        lines = g.Reshape(seen, [0, 0, 0, 0, pixels])
        first = g.ArgMax(lines, axis=4, keepdims=1)
        hit = g.And(
            g.Equal(first, g.const(np.arange(pixels))), g.Reshape(mask, [0, 1, *self.pooled_shape, pixels])
        )
        shares = g.ReduceSum(g.Where(hit, g.Unsqueeze(dY, [4]), 0.0), [2, 3], keepdims=0)
        spread = g.Reshape(shares, [0, 0, *extents])
        return g.onward.GatherGrad(spread, images, g.shape(X), axis=0)

    def _inside(self, g: Builder, rois: ir.Value, axis: int, bins: int, extent: int) -> ir.Value:
        """Whether each pixel along an axis is in each bin, [R, bins, extent]."""
        dtype = numpy_dtype(dtype_of(rois))
        corners = (g.Mul(g.Gather(rois, [k], axis=1), self.spatial_scale) for k in (2 - axis, 4 - axis))
        start, end = (g.Mul(g.Sign(x), g.Floor(g.Add(g.Abs(x), 0.5))) for x in corners)
        size = g.Div(g.Max(g.Add(g.Sub(end, start), 1.0), 1.0), float(bins))
        number = g.const(np.arange(bins).astype(dtype))
        first = g.Unsqueeze(g.Add(start, g.Floor(g.Mul(size, number))), [2])
        last = g.Unsqueeze(g.Add(start, g.Ceil(g.Mul(size, g.Add(number, 1.0)))), [2])
        pixel = g.const(np.arange(extent).astype(dtype))
        return g.And(g.GreaterOrEqual(pixel, first), g.Less(pixel, last))


def _spread(thread: int, threads: int, dX: Array, dY: Array, X: Array, rois: Array, scale: float) -> None:
    """Channels are shared out: regions may overlap."""
    regions, channels, high, wide = dY.shape
    for c in range(channels * thread // threads, channels * (thread + 1) // threads):
        for n in range(X.shape[0]):
            for v in range(X.shape[2]):
                for u in range(X.shape[3]):
                    dX[n, c, v, u] = 0
        for r in range(regions):
            if not 0 <= rois[r, 0] < X.shape[0]:
                raise IndexError("a region is of an image that there is not")
            n = int(rois[r, 0])
            for i in range(high):
                top, bottom = bounds(rois[r, 2], rois[r, 4], scale, high, X.shape[2], i)
                for j in range(wide):
                    left, right = bounds(rois[r, 1], rois[r, 3], scale, wide, X.shape[3], j)
                    row, column = best(X, n, c, top, bottom, left, right)
                    if row >= 0:
                        dX[n, c, row, column] += dY[r, c, i, j]
