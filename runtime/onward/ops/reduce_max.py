from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, dtype_of, op
from onward.ops._floats import is_integer
from onward.ops._reduction import AxesAttribute, AxesInput, Compiled

_COMPILED = Compiled("max")


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    initial: Any = -np.inf
    if data.dtype.kind == "b":
        initial = False
    elif is_integer(data):
        initial = np.iinfo(data.dtype).min
    return np.max(data, axis=axes, keepdims=keepdims, initial=initial)


@op("ReduceMax", since=(18, 20))
class ReduceMax(AxesInput):
    """The largest element over axes; NaN wins. Ties share the gradient evenly."""

    compiled = _COMPILED

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        chosen = g.Cast(g.Equal(data, self.spread(g, y, axes)), to=int(dtype_of(data)))
        share = g.Div(self.spread(g, dy, axes), self.again(g, "ReduceSum", chosen, axes))
        return g.Mul(chosen, share), None


@op("ReduceMax", since=(1, 11, 12, 13))
class ReduceMaxAxesAttribute(AxesAttribute):
    """ReduceMax over axes that are an attribute."""
