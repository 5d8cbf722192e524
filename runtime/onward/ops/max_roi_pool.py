from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._regions import best, bounds, check_regions


@op("MaxRoiPool", since=(1, 22))
class MaxRoiPool(Op):
    """The maximum of each bin of each region of an image (Girshick 2015); 0 where a bin has no pixel.

    A region [n, x, y, x, y] is rounded to whole pixels, halves away from 0, and holds both corners. Bin i of
    p along an axis of d pixels has those from floor(i·d/p) up to ceil((i+1)·d/p). The gradient, by X alone,
    goes to a bin's first maximum.
    """

    pooled_shape: tuple[int, ...]
    spatial_scale: float = 1.0

    def kernel(self, X: Array, rois: Array) -> Array:
        check_regions(X.shape, rois, self.pooled_shape)
        high, wide = self.pooled_shape
        y = np.zeros((len(rois), X.shape[1], high, wide), X.dtype)
        for r, roi in enumerate(rois):
            rows, columns = (
                [bounds(roi[2 - a], roi[4 - a], self.spatial_scale, p, X.shape[2 + a], i) for i in range(p)]
                for a, p in enumerate(self.pooled_shape)
            )
            for i, (top, bottom) in enumerate(rows):
                for j, (left, right) in enumerate(columns):
                    if top < bottom and left < right:
                        y[r, :, i, j] = X[int(roi[0]), :, top:bottom, left:right].max((1, 2))
        return y

    def lower(self, static: Static, outputs: Values, X: ir.Value, rois: ir.Value) -> requests.Request:
        shapes = ((X, (None, None, None, None)), (rois, (None, 5)))
        return requests.Loop((outputs[0],), (X, rois), _pooled, (self.spatial_scale,), shapes=shapes)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value, rois: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        found = g.emit(
            "MaxRoiPoolGrad",
            dy,
            X,
            rois,
            domain=ONWARD_DOMAIN,
            pooled_shape=self.pooled_shape,
            spatial_scale=self.spatial_scale,
        )
        return found[0], None


def _pooled(thread: int, threads: int, y: Array, X: Array, rois: Array, scale: float) -> None:
    """Regions and channels are shared out."""
    regions, channels, high, wide = y.shape
    for unit in range(regions * channels * thread // threads, regions * channels * (thread + 1) // threads):
        r, c = unit // channels, unit % channels
        if not 0 <= rois[r, 0] < X.shape[0]:
            raise IndexError("a region is of an image that there is not")
        n = int(rois[r, 0])
        for i in range(high):
            top, bottom = bounds(rois[r, 2], rois[r, 4], scale, high, X.shape[2], i)
            for j in range(wide):
                left, right = bounds(rois[r, 1], rois[r, 3], scale, wide, X.shape[3], j)
                row, column = best(X, n, c, top, bottom, left, right)
                y[r, c, i, j] = X[n, c, row, column] if row >= 0 else 0
