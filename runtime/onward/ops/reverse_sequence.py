from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Builder, Op, op
from onward.ops._shape import normalized


@op("ReverseSequence", since=(10, 28))
class ReverseSequence(Op):
    """Of each sample the first sequence_lens steps in reverse, the others as they are."""

    batch_axis: int = 1
    time_axis: int = 0

    def kernel(self, input: Array, sequence_lens: Array) -> Array:
        batch, time = normalized(self.batch_axis, input.ndim), normalized(self.time_axis, input.ndim)
        steps = np.arange(input.shape[time])
        lengths = sequence_lens.reshape(-1, 1)
        if lengths.size != input.shape[batch]:
            raise ShapeError(
                f"{lengths.size} sequence_lens are not one for each of {input.shape[batch]} samples"
            )
        if lengths.size and not 0 <= lengths.min() <= lengths.max() <= steps.size:
            raise ValueError(f"sequence_lens are not all in 0…{steps.size}, the extent of the time axis")
        source = np.where(steps < lengths, lengths - 1 - steps, steps)
        ordered = np.moveaxis(input, (batch, time), (0, 1))
        taken = ordered[np.arange(source.shape[0])[:, None], source]
        return np.moveaxis(taken, (0, 1), (batch, time))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value, sequence_lens: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        reversed_ = g.ReverseSequence(dy, sequence_lens, batch_axis=self.batch_axis, time_axis=self.time_axis)
        return reversed_, None
