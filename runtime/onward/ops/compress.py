from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op
from onward.ops._shape import normalized, rank_of


@op("Compress", since=(9, 11, 28))
class Compress(Op):
    """The slices along an axis, or elements, where condition is true; it may be shorter than the axis."""

    axis: int | None = None

    def kernel(self, input: Array, condition: Array) -> Array:
        return np.compress(condition, input, axis=self.axis)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value, condition: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        chosen = g.Squeeze(g.NonZero(condition), [0])
        if self.axis is None:
            flat = g.onward.GatherGrad(dy, chosen, g.Reshape(g.Size(input), [1]), axis=0)
            return g.reshape_like(flat, input), None
        axis = normalized(self.axis, rank_of(input))
        return g.onward.GatherGrad(dy, chosen, g.shape(input), axis=axis), None
