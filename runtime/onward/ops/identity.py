from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onward.graph import Array, Builder, Lowering, Op, op


@op("Identity", since=(1, 13, 14, 16, 19, 21, 23, 24, 25))
class Identity(Op):
    """The input."""

    def kernel(self, input: Array) -> Array:
        return input

    def lower(self, b: Lowering, outputs: Sequence[ir.Value], input: ir.Value) -> None:
        b.forward(outputs[0], input)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (dy,)
