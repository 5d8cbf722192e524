from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
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

    def lower(
        self, static: Static, outputs: Values, input: ir.Value, sequence_lens: ir.Value
    ) -> requests.Loop:
        shape = static.shape(input)
        batch, time = normalized(self.batch_axis, len(shape)), normalized(self.time_axis, len(shape))
        shapes = ((sequence_lens, (shape[batch],)),)
        operands = (input, sequence_lens)
        return requests.Loop((outputs[0],), operands, _reversed, (batch, time), shapes=shapes)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value, sequence_lens: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        reversed_ = g.ReverseSequence(dy, sequence_lens, batch_axis=self.batch_axis, time_axis=self.time_axis)
        return reversed_, None


def _reversed(thread: int, threads: int, y: Array, x: Array, lengths: Array, batch: int, time: int) -> None:
    """What lies behind both axes moves as it is; pieces of it are shared out."""
    inner, sample, step = 1, 0, 0
    for d in range(x.ndim - 1, -1, -1):
        if d == batch:
            sample = inner
        if d == time:
            step = inner
        if d > max(batch, time) or sample == 0 or step == 0:
            inner *= x.shape[d]
    piece = min(sample, step)
    for number in range(x.size // piece * thread // threads, x.size // piece * (thread + 1) // threads):
        at = number * piece
        t = at // step % x.shape[time]
        length = lengths.flat[at // sample % x.shape[batch]]
        if length < 0 or length > x.shape[time]:
            raise ValueError("sequence_lens are not all in the time axis")
        source = at + (length - 1 - 2 * t) * step if t < length else at
        for i in range(piece):
            y.flat[at + i] = x.flat[source + i]
