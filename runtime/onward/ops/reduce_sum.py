from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, op
from onward.ops._floats import total
from onward.ops._reduction import AxesAttribute, AxesInput, Compiled
from onward.ops._shape import like

_COMPILED = Compiled("sum")


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return total(data, axes, keepdims)


@op("ReduceSum", since=13)
class ReduceSum(AxesInput):
    """The sum over axes."""

    compiled = _COMPILED

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        return like(g.Expand(self.spread(g, dy, axes), g.shape(data)), data), None


@op("ReduceSum", since=(1, 11))
class ReduceSumAxesAttribute(AxesAttribute):
    """ReduceSum over axes that are an attribute."""
