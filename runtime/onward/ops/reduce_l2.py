from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, op
from onward.ops._floats import is_integer, total
from onward.ops._reduction import AxesAttribute, AxesInput, Compiled

_COMPILED = Compiled("sum", lambda x: x * x, lambda total, _: total.apply("sqrt"))


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    if is_integer(data):
        return _reduced(data.astype(np.float64), axes, keepdims).astype(data.dtype)
    return np.sqrt(total(data * data, axes, keepdims))


@op("ReduceL2", since=18)
class ReduceL2(AxesInput):
    """The square root of the sum of squares over axes; slope 0 at 0."""

    compiled = _COMPILED

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        norm = self.spread(g, y, axes)
        scale = g.Div(self.spread(g, dy, axes), norm)
        return g.Mul(data, g.Where(g.Equal(norm, 0.0), 0.0, scale)), None


@op("ReduceL2", since=(1, 11, 13))
class ReduceL2AxesAttribute(AxesAttribute):
    """ReduceL2 over axes that are an attribute."""
