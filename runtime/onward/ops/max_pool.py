from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Dim, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Unsupported, Values
from onward.ops._pooling import Pooling, first_hits, window_maximum
from onward.ops._window import Extents, Geometry


@op("MaxPool", since=(1, 8, 10, 11, 12, 22), multiple_outputs=True)
class MaxPool(Pooling):
    """Y is the largest element of each window, NaN where one is; Indices says where in flattened X it is.

    Among equal elements the first in row-major order counts. storage_order=1 flattens the spatial axes in
    column-major order.
    """

    storage_order: int = 0

    def pooling(self, spatial: Extents) -> Geometry:
        """The geometry over spatial axes of these extents."""
        return self.window().over(spatial).reduced

    def kernel(self, X: Array) -> Array | tuple[Array, Array]:
        geometry = self.pooling(X.shape[2:])
        y = window_maximum(X, geometry)
        return y if self.output_count == 1 else (y, self._indices(X, y, geometry))

    def _indices(self, X: Array, y: Array, geometry: Geometry) -> Array:
        indices = np.zeros(y.shape, np.int64)
        steps = np.cumprod([1, *geometry.spatial])[:-1]
        if self.storage_order == 0:
            steps = np.cumprod([1, *geometry.spatial[:0:-1]])[::-1]
        rank = len(geometry.out)
        for tap, _, hit in first_hits(X, y, geometry):
            at = np.zeros(geometry.out, np.int64)
            for axis in range(rank):
                place = np.arange(geometry.out[axis]) * geometry.strides[axis]
                place += tap[axis] * geometry.dilations[axis] - geometry.begin[axis]
                at += steps[axis] * place.reshape(-1, *(1,) * (rank - 1 - axis))
            np.copyto(indices, at, where=hit)
        planes = np.arange(X.shape[0] * X.shape[1]) * int(np.prod(geometry.spatial))
        return indices + planes.reshape(*X.shape[:2], *(1,) * rank)

    def lower(self, static: Static, outputs: Values, X: ir.Value) -> requests.MaxPool | Unsupported:
        if len(outputs) > 1:
            return Unsupported("indices")
        return requests.MaxPool(outputs[0], X, self.pooling(static.shape(X)[2:]))

    def infer(self, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        dims = self.window().pooled_dims(dims_of(X))
        return [(dtype_of(X), dims), (ir.DataType.INT64, dims)]

    def gradient(
        self,
        g: Builder,
        dy: tuple[ir.Value | None, ...],
        y: tuple[ir.Value, ...],
        X: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        return (
            g.onward.MaxPoolGrad(
                dy[0],
                X,
                **self.attributes(),
            ),
        )
