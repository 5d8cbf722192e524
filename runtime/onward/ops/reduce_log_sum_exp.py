from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, is_float, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._floats import is_integer, total
from onward.ops._reduction import AxesAttribute, AxesInput
from onward.ops._shape import constant_of


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    if is_integer(data):
        return _reduced(data.astype(np.float64), axes, keepdims).astype(data.dtype)
    peak = np.max(data, axis=axes, keepdims=True, initial=-np.inf)
    shift = np.where(np.isfinite(peak), peak, 0).astype(data.dtype)
    log = np.log(total(np.exp(data - shift), axes, True)) + shift
    return log if keepdims else np.squeeze(log, axes)


@op("ReduceLogSumExp", since=(18, 28))
class ReduceLogSumExp(AxesInput):
    """The logarithm of the sum of exponentials over axes."""

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))

    def lower(
        self, static: Static, outputs: Values, data: ir.Value, axes: ir.Value | None = None
    ) -> requests.Body | requests.Unsupported:
        if axes is not None and static.known(axes) is None:
            return requests.Unsupported("axes that are not constant")
        return requests.Body() if is_float(data) else requests.NO_KERNEL

    def expand(self, g: Builder, data: ir.Value, axes: ir.Value | None = None) -> ir.Value:
        """Exponentials of the distances from the largest element, where that is finite."""
        peak = self.again(g, "ReduceMax", data, axes)
        shift = g.Where(g.Equal(g.Sub(peak, peak), 0.0), peak, 0.0)
        total = self.again(g, "ReduceSum", g.Exp(g.Sub(data, shift)), axes)
        y = g.Add(g.Log(total), shift)
        if self.keepdims:
            return y
        shape = static_shape(data)
        assert shape is not None
        known = constant_of(axes)
        named = [] if known is None else [int(a) % len(shape) for a in known.reshape(-1)]
        if not named and not self.noop_with_empty_axes:
            named = list(range(len(shape)))
        return g.Squeeze(y, g.const(named, np.int64)) if named else y

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        softmax = g.Exp(g.Sub(data, self.spread(g, y, axes)))
        return g.Mul(self.spread(g, dy, axes), softmax), None


@op("ReduceLogSumExp", since=(1, 11, 13))
class ReduceLogSumExpAxesAttribute(AxesAttribute):
    """ReduceLogSumExp over axes that are an attribute."""
