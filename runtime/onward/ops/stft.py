from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Dim, Op, dims_of, dtype_of, op
from onward.ops._shape import constant_of
from onward.ops.dft import transform


@op("STFT", since=17)
class STFT(Op):
    """The Fourier transforms of a signal's frames: [batch, frames, bins, 2].

    Frames of frame_length, the window's by default, begin every frame_step samples; those that would go
    beyond the end are left out.
    """

    static_operands = ("frame_step", "frame_length")

    onesided: int = 1

    def kernel(
        self,
        signal: Array,
        frame_step: Array,
        window: Array | None = None,
        frame_length: Array | None = None,
    ) -> Array:
        if signal.ndim != 3 or signal.shape[-1] not in (1, 2):
            raise ShapeError(f"signal has shape {list(signal.shape)}; STFT takes [batch, samples, 1 or 2]")
        step = int(frame_step.reshape(-1)[0])
        if frame_length is not None:
            length = int(frame_length.reshape(-1)[0])
        elif window is not None:
            length = window.shape[0]
        else:
            raise ShapeError("STFT needs a window or a frame_length")
        if step < 1 or not 1 <= length <= signal.shape[1]:
            raise ShapeError(
                f"frames of {length} samples every {step} of a signal of {signal.shape[1]} samples"
            )
        frames = np.lib.stride_tricks.sliding_window_view(signal, length, axis=1)[:, ::step]
        frames = np.moveaxis(frames, -1, 2)
        if window is not None:
            if window.shape != (length,):
                raise ShapeError(f"a window of shape {list(window.shape)} for frames of {length} samples")
            frames = frames * window[:, None]
        onesided = bool(self.onesided) and signal.shape[-1] == 1
        return transform(frames.astype(signal.dtype), None, 2, inverse=False, onesided=onesided)

    def infer(
        self,
        signal: ir.Value,
        frame_step: ir.Value,
        window: ir.Value | None = None,
        frame_length: ir.Value | None = None,
    ) -> list[tuple[ir.DataType, tuple[Dim, ...]] | None]:
        shape, step, length = dims_of(signal), constant_of(frame_step), constant_of(frame_length)
        frame: Dim = None
        if length is not None and length.size == 1:
            frame = int(length.reshape(()))
        elif frame_length is None and window is not None and (extents := dims_of(window)):
            frame = extents[0]
        if shape is None or len(shape) != 3 or not isinstance(frame, int):
            return [None]
        if frame < 1 or (isinstance(shape[1], int) and frame > shape[1]):
            raise ShapeError(f"frames of {frame} samples of a signal of {shape[1]} samples")
        frames: Dim = None
        if isinstance(shape[1], int) and step is not None and step.size == 1 and int(step.reshape(())) > 0:
            frames = max(0, (shape[1] - frame) // int(step.reshape(())) + 1)
        bins: Dim = frame
        if self.onesided:
            bins = (frame // 2 + 1 if shape[2] == 1 else frame) if isinstance(shape[2], int) else None
        return [(dtype_of(signal), (shape[0], frames, bins, 2))]
