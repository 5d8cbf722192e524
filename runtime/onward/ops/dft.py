from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Builder, Op, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._fourier import matrix_transform, too_long
from onward.ops._shape import constant_of, normalized


@op("DFT", since=20)
class DFT(Op):
    """The discrete Fourier transform along an axis; the last axis of extent 2 holds real and imaginary parts.

    With onesided, of real input its first half only, and in the inverse real output of such a half.
    """

    static_operands = ("dft_length", "axis")

    inverse: int = 0
    onesided: int = 0

    def kernel(self, input: Array, dft_length: Array | None = None, axis: Array | None = None) -> Array:
        along = _along(input.shape, axis)
        length = None if dft_length is None else int(dft_length.reshape(-1)[0])
        return transform(input, length, along, inverse=bool(self.inverse), onesided=bool(self.onesided))

    def lower(
        self,
        static: Static,
        outputs: Values,
        input: ir.Value,
        dft_length: ir.Value | None = None,
        axis: ir.Value | None = None,
    ) -> requests.Body | requests.Unsupported:
        known = [None if v is None else static.known(v) for v in (dft_length, axis)]
        if any(v is not None and k is None for v, k in zip((dft_length, axis), known, strict=True)):
            return requests.Unsupported("a dft_length or an axis that is not constant")
        if self.inverse and not self.onesided:
            return requests.Unsupported("an inverse transform to complex elements")
        shape = static.shape(input)
        along = _along(shape, known[1])
        length = self._length(shape[along], known[0])
        if 0 in shape or length < 1:
            return requests.Unsupported("nothing to transform")
        if reason := too_long(length):
            return requests.Unsupported(reason)
        return requests.Body()

    def expand(
        self, g: Builder, input: ir.Value, dft_length: ir.Value | None = None, axis: ir.Value | None = None
    ) -> ir.Value:
        shape = static_shape(input) or ()
        along = _along(shape, constant_of(axis))
        length = self._length(shape[along], constant_of(dft_length))
        inverse, onesided = bool(self.inverse), bool(self.onesided)
        return matrix_transform(g, input, length, along, inverse=inverse, onesided=onesided)

    def _length(self, extent: int, known: Array | None) -> int:
        if known is not None:
            return int(known.reshape(-1)[0])
        return 2 * (extent - 1) if self.inverse and self.onesided else extent


@op("DFT", since=17)
class DFT17(Op):
    """DFT whose axis is an attribute."""

    axis: int = 1
    inverse: int = 0
    onesided: int = 0

    def canonical(self, g: Builder, input: ir.Value, dft_length: ir.Value | None = None) -> ir.Value:
        axis = g.const(self.axis, np.int64)
        return g.DFT(input, dft_length, axis, inverse=self.inverse, onesided=self.onesided)


def _along(shape: tuple[int, ...], axis: Array | None) -> int:
    if len(shape) < 2 or shape[-1] not in (1, 2):
        raise ShapeError(f"input has shape {list(shape)}; DFT takes [..., 1] or [..., 2]")
    along = normalized(-2 if axis is None else int(axis.reshape(-1)[0]), len(shape))
    if along == len(shape) - 1:
        raise ShapeError("DFT along the axis of real and imaginary parts")
    return along


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
