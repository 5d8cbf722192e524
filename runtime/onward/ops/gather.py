from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Lowering, Op, op
from onward.ops._shape import normalized, rank_of


@op("Gather", since=(1, 11, 13))
class Gather(Op):
    """The slices of data that indices name along an axis; negative ones count from the end."""

    axis: int = 0

    def kernel(self, data: Array, indices: Array) -> Array:
        return np.take(data, indices, axis=self.axis)

    def lower(self, b: Lowering, outputs: Sequence[ir.Value], data: ir.Value, indices: ir.Value) -> None:
        b.gather_rows(outputs[0], data, indices, self.axis)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, indices: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        axis = normalized(self.axis, rank_of(data))
        return g.onward.GatherGrad(dy, indices, g.shape(data), axis=axis), None
