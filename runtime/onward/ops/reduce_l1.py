from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, op
from onward.ops._floats import total
from onward.ops._reduction import AxesAttribute, AxesInput, Compiled

_COMPILED = Compiled("sum", lambda x: x.apply("abs"))


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return total(np.abs(data), axes, keepdims)


@op("ReduceL1", since=18)
class ReduceL1(AxesInput):
    """The sum of absolute values over axes."""

    compiled = _COMPILED

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        return g.Mul(self.spread(g, dy, axes), g.Sign(data)), None


@op("ReduceL1", since=(1, 11, 13))
class ReduceL1AxesAttribute(AxesAttribute):
    """ReduceL1 over axes that are an attribute."""
