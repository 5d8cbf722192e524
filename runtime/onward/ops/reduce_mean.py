from __future__ import annotations

import math

import onnx_ir as ir

from onward.graph import Array, Builder, op
from onward.ops._floats import is_integer, total
from onward.ops._reduction import AxesAttribute, AxesInput, Compiled
from onward.ops._shape import like

_COMPILED = Compiled("sum", after=lambda total, count: total * (1.0 / count))


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    count = math.prod(data.shape[a] for a in axes)
    if is_integer(data):
        return (total(data, axes, keepdims) / count).astype(data.dtype)
    return total(data, axes, keepdims) / data.dtype.type(count)


@op("ReduceMean", since=18)
class ReduceMean(AxesInput):
    """The mean over axes; NaN over none."""

    compiled = _COMPILED

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        spread = self.spread(g, dy, axes)
        share = g.Div(spread, self.count(g, data, y, axes))
        return like(g.Expand(share, g.shape(data)), data), None


@op("ReduceMean", since=(1, 11, 13))
class ReduceMeanAxesAttribute(AxesAttribute):
    """ReduceMean over axes that are an attribute."""
