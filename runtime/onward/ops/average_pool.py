from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Dim, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import working_dtype
from onward.ops._pooling import Pooling, counted, window_sum


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
            raise UnsupportedError(
                "the gradient of AveragePool needs static spatial extents; "
                "fix them in the model's input, or use GlobalAveragePool"
            )
        return (
            g.onward.AveragePoolGrad(
                dy,
                count_include_pad=self.count_include_pad,
                spatial=spatial,
                **self.attributes(),
            ),
        )
