"""What operators on quantised tensors share: a tensor, its scale and its zero point, which may be absent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, dims_of

__all__ = [
    "QuantizedBinary",
    "QuantizedUnary",
    "channels_first",
    "channels_last",
    "dequantize",
    "quantize",
    "unpacked",
]


def dequantize(
    g: Builder, x: ir.Value, scale: ir.Value | None, zero: ir.Value | None, axis: int | None = None
) -> ir.Value:
    """The numbers that a quantised tensor stands for; scales are one, or one an index of the axis."""
    return g.DequantizeLinear(x, scale, zero, axis=axis)


def unpacked(stored: Array, bits: int) -> Array:
    """Unsigned integers of so many bits that stand in bytes along the last axis, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (stored[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(numbers).reshape(*stored.shape[:-1], -1)


def quantize(
    g: Builder, x: ir.Value, scale: ir.Value | None, zero: ir.Value | None, like: ir.Value
) -> ir.Value:
    """x quantised; without a zero point of the element type of another tensor, with zero point 0."""
    if zero is None:
        zero = g.Cast(g.const(0, ir.DataType.INT32), to=int(like.dtype or ir.DataType.UINT8))
    return g.QuantizeLinear(x, scale, zero)


def _rank(x: ir.Value, given: int | None) -> int:
    dims = dims_of(x)
    if dims is None and given is None:
        raise UnsupportedError(f"channels are last, but the rank of {x.name!r} is not known")
    return len(dims) if dims is not None else given or 0


def channels_first(g: Builder, x: ir.Value, rank: int | None = None) -> ir.Value:
    """[N, *, C] as [N, C, *]."""
    n = _rank(x, rank)
    return g.Transpose(x, perm=[0, n - 1, *range(1, n - 1)])


def channels_last(g: Builder, x: ir.Value, rank: int | None = None) -> ir.Value:
    """[N, C, *] as [N, *, C]."""
    n = _rank(x, rank)
    return g.Transpose(x, perm=[0, *range(2, n), 1])


@dataclass(frozen=True, kw_only=True)
class QuantizedUnary(Op, ABC):
    """An operator on the numbers that a quantised tensor stands for, its result quantised again."""

    @abstractmethod
    def of_numbers(self, g: Builder, x: ir.Value) -> ir.Value:
        """The result before it is quantised."""

    def canonical(
        self,
        g: Builder,
        X: ir.Value,
        X_scale: ir.Value,
        X_zero_point: ir.Value | None,
        Y_scale: ir.Value,
        Y_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        return quantize(
            g, self.of_numbers(g, dequantize(g, X, X_scale, X_zero_point)), Y_scale, Y_zero_point, X
        )


@dataclass(frozen=True, kw_only=True)
class QuantizedBinary(Op, ABC):
    """The same of two quantised tensors, which broadcast."""

    @abstractmethod
    def of_numbers(self, g: Builder, a: ir.Value, b: ir.Value) -> ir.Value:
        """The result before it is quantised."""

    def canonical(
        self,
        g: Builder,
        A: ir.Value,
        A_scale: ir.Value,
        A_zero_point: ir.Value | None,
        B: ir.Value,
        B_scale: ir.Value,
        B_zero_point: ir.Value | None,
        C_scale: ir.Value,
        C_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        a, b = dequantize(g, A, A_scale, A_zero_point), dequantize(g, B, B_scale, B_zero_point)
        return quantize(g, self.of_numbers(g, a, b), C_scale, C_zero_point, A)
