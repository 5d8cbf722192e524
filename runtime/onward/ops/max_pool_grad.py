from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._pooling import Pooling, first_hits, window_maximum
from onward.ops._shape import require_shape
from onward.ops._window import Extents, Geometry, inner, padded


@op("MaxPoolGrad", since=1, domain=ONWARD_DOMAIN)
class MaxPoolGrad(Pooling):
    """dX[i] = Σ dY[p] over the windows p of MaxPool whose first maximum is X[i]; dX has X's shape."""

    def pooling(self, spatial: Extents) -> Geometry:
        """The geometry over spatial axes of these extents."""
        return self.window().over(spatial).reduced

    def kernel(self, dY: Array, X: Array) -> Array:
        geometry = self.pooling(X.shape[2:])
        require_shape("dY", dY, (*X.shape[:2], *geometry.out))
        dxp = np.zeros_like(padded(X, geometry), dY.dtype)
        for _, where, hit in first_hits(X, window_maximum(X, geometry), geometry):
            target = dxp[where]
            np.add(target, dY, out=target, where=hit)
        return np.ascontiguousarray(dxp[inner(geometry)])

    def lower(self, static: Static, outputs: Values, dY: ir.Value, X: ir.Value) -> requests.MaxPoolGradient:
        return requests.MaxPoolGradient(outputs[0], dY, X, self.pooling(static.shape(X)[2:]))

    def infer(self, dY: ir.Value, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(dtype_of(dY), dims_of(X))]

    def expand(self, g: Builder, dY: ir.Value, X: ir.Value) -> ir.Value:
        _, indices = g.emit(
            "MaxPool",
            X,
            outputs=2,
            **self.attributes(),
        )
        zeros = g.Reshape(g.zeros_like(X), [-1])
        flat = g.ScatterElements(
            zeros, g.Reshape(indices, [-1]), g.Reshape(dY, [-1]), axis=0, reduction="add"
        )
        return g.reshape_like(flat, X)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, dY: ir.Value, X: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        _, indices = g.emit(
            "MaxPool",
            X,
            outputs=2,
            **self.attributes(),
        )
        return g.Gather(g.Reshape(dy, [-1]), indices), None
