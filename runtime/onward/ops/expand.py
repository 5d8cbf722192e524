from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Lowering, Op, op


@op("Expand", since=(8, 13))
class Expand(Op):
    """input broadcast together with a shape."""

    def kernel(self, input: Array, shape: Array) -> Array:
        wanted = tuple(int(n) for n in shape)
        return np.broadcast_to(input, np.broadcast_shapes(input.shape, wanted))

    def lower(self, b: Lowering, outputs: Sequence[ir.Value], input: ir.Value, shape: ir.Value) -> None:
        b.expand(outputs[0], input)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value, shape: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return dy, None
