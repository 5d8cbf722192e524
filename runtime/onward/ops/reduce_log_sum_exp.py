from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, op
from onward.ops._floats import is_integer, total
from onward.ops._reduction import AxesAttribute, AxesInput


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

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        softmax = g.Exp(g.Sub(data, self.spread(g, y, axes)))
        return g.Mul(self.spread(g, dy, axes), softmax), None


@op("ReduceLogSumExp", since=(1, 11, 13))
class ReduceLogSumExpAxesAttribute(AxesAttribute):
    """ReduceLogSumExp over axes that are an attribute."""
