from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Builder, Dim, Op, dims_of, dtype_of, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._fourier import matrix_transform, too_long
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
        step, length = _frames(
            signal.shape, frame_step, None if window is None else window.shape, frame_length
        )
        frames = np.lib.stride_tricks.sliding_window_view(signal, length, axis=1)[:, ::step]
        frames = np.moveaxis(frames, -1, 2)
        if window is not None:
            frames = frames * window[:, None]
        onesided = bool(self.onesided) and signal.shape[-1] == 1
        return transform(frames.astype(signal.dtype), None, 2, inverse=False, onesided=onesided)

    def lower(
        self,
        static: Static,
        outputs: Values,
        signal: ir.Value,
        frame_step: ir.Value,
        window: ir.Value | None = None,
        frame_length: ir.Value | None = None,
    ) -> requests.Body | requests.Unsupported:
        step, length = static.known(frame_step), None if frame_length is None else static.known(frame_length)
        if step is None or (frame_length is not None and length is None):
            return requests.Unsupported("a frame_step or a frame_length that is not constant")
        shape = static.shape(signal)
        _, extent = _frames(shape, step, None if window is None else static.shape(window), length)
        if reason := too_long(extent):
            return requests.Unsupported(reason)
        return requests.Body()

    def expand(
        self,
        g: Builder,
        signal: ir.Value,
        frame_step: ir.Value,
        window: ir.Value | None = None,
        frame_length: ir.Value | None = None,
    ) -> ir.Value:
        known, shape = constant_of(frame_step), static_shape(signal) or ()
        assert known is not None
        over = None if window is None else static_shape(window)
        step, length = _frames(shape, known, over, constant_of(frame_length))
        starts = np.arange((shape[1] - length) // step + 1) * step
        frames = g.Gather(signal, g.const(starts[:, None] + np.arange(length), np.int64), axis=1)
        if window is not None:
            frames = g.Mul(frames, g.Unsqueeze(window, [1]))
        onesided = bool(self.onesided) and shape[-1] == 1
        return matrix_transform(g, frames, length, 2, inverse=False, onesided=onesided)

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


def _frames(
    signal: tuple[int, ...], frame_step: Array, window: tuple[int, ...] | None, frame_length: Array | None
) -> tuple[int, int]:
    """How far frames are apart, and how long they are."""
    if len(signal) != 3 or signal[-1] not in (1, 2):
        raise ShapeError(f"signal has shape {list(signal)}; STFT takes [batch, samples, 1 or 2]")
    step = int(frame_step.reshape(-1)[0])
    if frame_length is not None:
        length = int(frame_length.reshape(-1)[0])
    elif window is not None:
        length = window[0]
    else:
        raise ShapeError("STFT needs a window or a frame_length")
    if step < 1 or not 1 <= length <= signal[1]:
        raise ShapeError(f"frames of {length} samples every {step} of a signal of {signal[1]} samples")
    if window is not None and window != (length,):
        raise ShapeError(f"a window of shape {list(window)} for frames of {length} samples")
    return step, length
