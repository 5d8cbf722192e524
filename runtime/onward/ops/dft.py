from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Builder, Op, op
from onward.ops._shape import normalized


@op("DFT", since=20)
class DFT(Op):
    """The discrete Fourier transform along an axis; the last axis of extent 2 holds real and imaginary parts.

    With onesided, of real input its first half only, and in the inverse real output of such a half.
    """

    static_operands = ("dft_length", "axis")

    inverse: int = 0
    onesided: int = 0

    def kernel(self, input: Array, dft_length: Array | None = None, axis: Array | None = None) -> Array:
        if input.ndim < 2 or input.shape[-1] not in (1, 2):
            raise ShapeError(f"input has shape {list(input.shape)}; DFT takes [..., 1] or [..., 2]")
        along = normalized(-2 if axis is None else int(axis.reshape(-1)[0]), input.ndim)
        if along == input.ndim - 1:
            raise ShapeError("DFT along the axis of real and imaginary parts")
        length = None if dft_length is None else int(dft_length.reshape(-1)[0])
        return transform(input, length, along, inverse=bool(self.inverse), onesided=bool(self.onesided))


@op("DFT", since=17)
class DFT17(Op):
    """DFT whose axis is an attribute."""

    axis: int = 1
    inverse: int = 0
    onesided: int = 0

    def canonical(self, g: Builder, input: ir.Value, dft_length: ir.Value | None = None) -> ir.Value:
        axis = g.const(self.axis, np.int64)
        return g.DFT(input, dft_length, axis, inverse=self.inverse, onesided=self.onesided)


def transform(x: Array, length: int | None, axis: int, *, inverse: bool, onesided: bool) -> Array:
    """The transform of x, whose last axis holds real, or real and imaginary, parts."""
    wide = x if x.dtype == np.float64 else x.astype(np.float32)
    if inverse and onesided:
        half = wide[..., 0] if wide.shape[-1] == 1 else wide[..., 0] + 1j * wide[..., 1]
        return np.fft.irfft(half, length, axis)[..., None].astype(x.dtype)
    if wide.shape[-1] == 1:
        values = wide[..., 0]
        if onesided:
            spectrum = np.fft.rfft(values, length, axis)
        else:
            spectrum = (np.fft.ifft if inverse else np.fft.fft)(values, length, axis)
    else:
        values = wide[..., 0] + 1j * wide[..., 1]
        spectrum = (np.fft.ifft if inverse else np.fft.fft)(values, length, axis)
        if onesided:
            spectrum = np.take(spectrum, range(spectrum.shape[axis] // 2 + 1), axis)
    return np.stack([spectrum.real, spectrum.imag], -1).astype(x.dtype)
