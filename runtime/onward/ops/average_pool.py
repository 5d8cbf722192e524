from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Dim, dims_of, dtype_of, numpy_dtype, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import working_dtype
from onward.ops._pooling import Pooling, counted, window_sum
from onward.ops._window import shaped_like


@op("AveragePool", since=(1, 7, 10, 11, 19, 22))
class AveragePool(Pooling):
    """Y is the mean of the elements of X in each window; count_include_pad=1 counts pads as zeros."""

    count_include_pad: int = 0

    def kernel(self, X: Array) -> Array:
        geometry = self.window().over(X.shape[2:])
        work = working_dtype(X.dtype)
        y = window_sum(X.astype(work, copy=False), geometry.reduced)
        y /= geometry.counts(include_pad=bool(self.count_include_pad), dtype=work)
        return y.astype(X.dtype, copy=False)

    def infer(self, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(dtype_of(X), self.window().pooled_dims(dims_of(X)))]

    def lower(self, static: Static, outputs: Values, X: ir.Value) -> requests.AveragePool:
        geometry = self.window().over(static.shape(X)[2:])
        return requests.AveragePool(outputs[0], X, *counted(geometry, bool(self.count_include_pad)))

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value | None, ...]:
        dims = dims_of(X)
        spatial = [d for d in dims[2:] if isinstance(d, int)] if dims is not None else []
        if dims is None or len(spatial) != len(dims) - 2:
            return (self._open_gradient(g, dy, X),)
        return (
            g.onward.AveragePoolGrad(
                dy,
                count_include_pad=self.count_include_pad,
                spatial=spatial,
                **self.attributes(),
            ),
        )

    def _open_gradient(self, g: Builder, dy: ir.Value, X: ir.Value) -> ir.Value:
        """The gradient where X's extents are not known yet: that of a convolution of each plane with ones."""
        window, dims = self.window(), dims_of(X)
        if dims is None or window.pads is None or window.ceil_mode:
            raise UnsupportedError(
                "the gradient of AveragePool needs static spatial extents under auto_pad and ceil_mode: say "
                "them with Trainer(shapes=...), or fix them in the file"
            )
        dtype = numpy_dtype(dtype_of(X))
        shared = {"strides": window.strides, "pads": window.pads, "dilations": window.dilations}
        alone = g.const([1, 1])
        extents = g.Slice(g.shape(X), [2], [len(dims)])
        share = g.Div(dy, float(np.prod(window.kernel)))
        if any(window.pads) and not self.count_include_pad:
            plane = g.Expand(g.const(np.ones((), dtype)), g.Concat(alone, extents, axis=0))
            part = g.AveragePool(plane, kernel_shape=window.kernel, count_include_pad=1, **shared)
            share = g.Div(share, part)
        lead = g.const([-1, 1])
        planes = g.Reshape(share, g.Concat(lead, g.Slice(g.shape(dy), [2], [len(dims)]), axis=0))
        of_planes = g.shape(g.Reshape(X, g.Concat(lead, extents, axis=0)))
        dX = g.onward.ConvGradInput(
            planes, g.const(np.ones((1, 1, *window.kernel), dtype)), of_planes, **shared
        )
        return shaped_like(g.Reshape(dX, g.shape(X)), X)
