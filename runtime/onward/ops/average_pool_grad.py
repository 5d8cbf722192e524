from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, dims_of, dtype_of, numpy_dtype, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import working_dtype
from onward.ops._pooling import Pooling, counted, spread
from onward.ops._window import Geometry, inner, tap_slices


@op("AveragePoolGrad", since=1, domain=ONWARD_DOMAIN)
class AveragePoolGrad(Pooling):
    """dX[i] = Σ dY[p] / count[p] over the windows p of AveragePool that hold X[i].

    dY [N, C, *out] gives [N, C, *spatial]. The attributes are AveragePool's, and X's spatial extents.
    """

    count_include_pad: int = 0
    spatial: tuple[int, ...]

    def geometry(self) -> Geometry:
        """The forward pooling's geometry."""
        return self.window().over(self.spatial)

    def kernel(self, dY: Array) -> Array:
        geometry = self.geometry()
        if dY.shape[2:] != geometry.out:
            raise ShapeError(f"dY {list(dY.shape)} does not have the pooled extents {list(geometry.out)}")
        work = working_dtype(dY.dtype)
        share = dY / geometry.counts(include_pad=bool(self.count_include_pad), dtype=work)
        geometry = geometry.reduced
        reach = (
            max(a + i, span)
            for a, i, span in zip(geometry.begin, geometry.spatial, geometry.span, strict=True)
        )
        dxp = np.zeros((*dY.shape[:2], *reach), work)
        for _, where in tap_slices(geometry):
            dxp[where] += share
        return np.ascontiguousarray(dxp[inner(geometry)], dY.dtype)

    def infer(self, dY: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        dims = dims_of(dY)
        return [(dtype_of(dY), (*(dims[:2] if dims is not None else (None, None)), *self.spatial))]

    def expand(self, g: Builder, dY: ir.Value) -> ir.Value:
        geometry = self.geometry()
        dtype = numpy_dtype(dtype_of(dY))
        counts = geometry.counts(include_pad=bool(self.count_include_pad), dtype=dtype)
        share = g.Div(dY, g.const(counts))
        return spread(g, share, geometry)

    def lower(self, static: Static, outputs: Values, dY: ir.Value) -> requests.AveragePoolGradient:
        geometry = counted(self.geometry(), bool(self.count_include_pad))
        return requests.AveragePoolGradient(outputs[0], dY, *geometry)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, dY: ir.Value) -> tuple[ir.Value | None, ...]:
        return (
            g.AveragePool(
                dy,
                count_include_pad=self.count_include_pad,
                **self.attributes(),
            ),
        )
