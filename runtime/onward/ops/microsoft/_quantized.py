"""What operators on quantised tensors share: a tensor, its scale and its zero point, which may be absent."""

from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, dims_of

__all__ = ["channels_first", "channels_last", "dequantize", "quantize"]


def dequantize(
    g: Builder, x: ir.Value, scale: ir.Value | None, zero: ir.Value | None, axis: int | None = None
) -> ir.Value:
    """The numbers that a quantised tensor stands for; scales are one, or one an index of the axis."""
    return g.DequantizeLinear(x, scale, zero, axis=axis)


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
