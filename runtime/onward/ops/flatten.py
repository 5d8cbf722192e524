from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._shape import split_at


@op("Flatten", since=(1, 9, 11, 13, 21, 23, 24, 25))
class Flatten(Op):
    """A matrix: the axes before `axis` make the rows, the others the columns."""

    axis: int = 1

    def kernel(self, input: Array) -> Array:
        return split_at(input, self.axis)

    def lower(self, static: Static, outputs: Values, input: ir.Value) -> requests.View:
        return requests.View(outputs[0], input)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.reshape_like(dy, input),)
