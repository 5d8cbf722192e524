from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, op
from onward.ops._floats import is_integer, total
from onward.ops._reduction import AxesAttribute, AxesInput, Compiled
from onward.ops._shape import like

_COMPILED = Compiled("sum", after=lambda total, _: total.apply("log"))


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    if is_integer(data):
        return _reduced(data.astype(np.float64), axes, keepdims).astype(data.dtype)
    return np.log(total(data, axes, keepdims))


@op("ReduceLogSum", since=(18, 28))
class ReduceLogSum(AxesInput):
    """The logarithm of the sum over axes."""

    compiled = _COMPILED

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        scale = g.Div(self.spread(g, dy, axes), self.again(g, "ReduceSum", data, axes))
        return like(g.Expand(scale, g.shape(data)), data), None


@op("ReduceLogSum", since=(1, 11, 13))
class ReduceLogSumAxesAttribute(AxesAttribute):
    """ReduceLogSum over axes that are an attribute."""
