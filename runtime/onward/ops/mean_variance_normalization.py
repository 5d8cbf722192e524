from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import working_dtype


@op("MeanVarianceNormalization", since=(9, 13))
class MeanVarianceNormalization(Op):
    """Y = (X − mean) / (sqrt(var) + 1e-9), the statistics over `axes`."""

    axes: tuple[int, ...] = (0, 2, 3)

    def kernel(self, X: Array) -> Array:
        work = working_dtype(X.dtype)
        centred = X - np.mean(X, axis=self.axes, keepdims=True, dtype=work)
        deviation = np.sqrt(np.mean(np.square(centred), axis=self.axes, keepdims=True))
        return (centred / (deviation + work.type(1e-9))).astype(X.dtype, copy=False)

    def lower(self, static: Static, outputs: Values, X: ir.Value) -> requests.Body:
        return requests.Body()

    def expand(self, g: Builder, X: ir.Value) -> ir.Value:
        centred = g.Sub(X, g.ReduceMean(X, list(self.axes), keepdims=1))
        deviation = g.Sqrt(g.ReduceMean(g.Mul(centred, centred), list(self.axes), keepdims=1))
        return g.Div(centred, g.Add(deviation, 1e-9))

    def infer(self, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(dtype_of(X), dims_of(X))]

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value | None, ...]:
        axes = list(self.axes)
        centred = g.Sub(X, g.ReduceMean(X, axes, keepdims=1))
        deviation = g.Sqrt(g.ReduceMean(g.Mul(centred, centred), axes, keepdims=1))
        along = g.Div(g.ReduceMean(g.Mul(dy, centred), axes, keepdims=1), deviation)
        # Elements that are all equal have deviation 0: only the mean's part of the gradient is left.
        along = g.Where(g.Equal(deviation, 0.0), 0.0, along)
        d = g.Sub(g.Sub(dy, g.ReduceMean(dy, axes, keepdims=1)), g.Mul(y, along))
        return (g.Div(d, g.Add(deviation, 1e-9)),)
