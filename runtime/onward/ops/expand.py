from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values


@op("Expand", since=(8, 13))
class Expand(Op):
    """input broadcast together with a shape."""

    static_operands = ("shape",)

    def kernel(self, input: Array, shape: Array) -> Array:
        wanted = tuple(int(n) for n in shape)
        return np.broadcast_to(input, np.broadcast_shapes(input.shape, wanted))

    def lower(self, static: Static, outputs: Values, input: ir.Value, shape: ir.Value) -> requests.Broadcast:
        return requests.Broadcast(outputs[0], input)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value, shape: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return dy, None
