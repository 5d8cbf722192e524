from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onward.graph import Array, Builder, Lowering, op
from onward.ops._floats import total
from onward.ops._reduction import AxesAttribute, AxesInput
from onward.ops._shape import like


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return total(data, axes, keepdims)


@op("ReduceSum", since=13)
class ReduceSum(AxesInput):
    """The sum over axes."""

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))

    def lower(
        self, b: Lowering, outputs: Sequence[ir.Value], data: ir.Value, axes: ir.Value | None = None
    ) -> None:
        b.reduce_sum(outputs[0], data, self.named_axes(b, axes))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        return like(g.Expand(self.spread(g, dy, axes), g.shape(data)), data), None


@op("ReduceSum", since=(1, 11))
class ReduceSumAxesAttribute(AxesAttribute):
    """ReduceSum over axes that are an attribute."""

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))
