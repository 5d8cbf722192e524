from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values


@op("Identity", since=(1, 13, 14, 16, 19, 21, 23, 24, 25))
class Identity(Op):
    """The input."""

    def kernel(self, input: Array) -> Array:
        return input

    def lower(self, static: Static, outputs: Values, input: ir.Value) -> requests.Identity:
        return requests.Identity(outputs[0], input)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (dy,)
