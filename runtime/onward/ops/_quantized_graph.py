"""Exact products and convolutions of 8-bit integers as graphs: floats that hold every sum, then integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, dtype_of, static_shape
from onward.ops._quantization import integer_product_type, integer_range
from onward.ops._quantized_product import by_channel, by_row

__all__ = ["channel_values", "integer_convolution", "integer_product", "requantized_values", "row_values"]


def _shape(value: ir.Value) -> tuple[int, ...]:
    shape = static_shape(value)
    assert shape is not None
    return shape


def _shaped(g: Builder, value: ir.Value, form: Callable[[Array], Array]) -> ir.Value:
    """A value under the shape that a function gives arrays of its shape.

    Raises:
        ShapeError: the function's.
    """
    wanted = form(np.broadcast_to(np.int8(0), _shape(value))).shape
    return value if wanted == _shape(value) else g.Reshape(value, g.const(wanted, np.int64))


def row_values(g: Builder, value: ir.Value, rank: int) -> ir.Value:
    """As `by_row`."""
    return _shaped(g, value, lambda x: by_row(x, rank))


def channel_values(g: Builder, value: ir.Value, channels: int, rank: int) -> ir.Value:
    """As `by_channel`."""
    return _shaped(g, value, lambda x: by_channel(x, channels, rank))


def _centred(g: Builder, x: ir.Value, zero: ir.Value | None, work: ir.DataType) -> ir.Value:
    wide = g.Cast(x, to=int(work))
    return wide if zero is None else g.Sub(wide, g.Cast(zero, to=int(work)))


def _whole(g: Builder, total: ir.Value) -> ir.Value:
    """Whole numbers as int32, which wraps around."""
    return g.Cast(g.Cast(total, to=int(ir.DataType.INT64)), to=int(ir.DataType.INT32))


def integer_product(
    g: Builder, a: ir.Value, b: ir.Value, a_zero: ir.Value | None, b_zero: ir.Value | None
) -> ir.Value:
    """(a − a_zero) · (b − b_zero) in int32.

    Raises:
        ShapeError: a sum of so many products is exact in no float.
    """
    work = ir.DataType.from_numpy(integer_product_type((_shape(a) or (1,))[-1]))
    rank = len(_shape(a))
    left = _centred(g, a, None if a_zero is None else row_values(g, a_zero, rank), work)
    if b_zero is not None and len(_shape(b_zero)) == 1 and _shape(b_zero) == (1,):
        b_zero = g.Squeeze(b_zero, g.const([0], np.int64))
    return _whole(g, g.MatMul(left, _centred(g, b, b_zero, work)))


def integer_convolution(
    g: Builder,
    x: ir.Value,
    w: ir.Value,
    x_zero: ir.Value | None,
    w_zero: ir.Value | None,
    convolve: Callable[[ir.Value, ir.Value], ir.Value],
) -> ir.Value:
    """The convolution of (x − x_zero) with (w − w_zero) in int32; padding is x_zero."""
    shape = _shape(w)
    work = ir.DataType.from_numpy(integer_product_type(int(np.prod(shape[1:]))))
    if x_zero is not None:
        x_zero = g.Reshape(x_zero, g.const([], np.int64))
    if w_zero is not None:
        w_zero = channel_values(g, w_zero, shape[0], len(shape))
    return _whole(g, convolve(_centred(g, x, x_zero, work), _centred(g, w, w_zero, work)))


def requantized_values(g: Builder, total: ir.Value, factor: ir.Value, zero_point: ir.Value) -> ir.Value:
    """round(total · factor) + zero_point in the zero point's 8-bit type; the product is in float32."""
    kind, wide = dtype_of(zero_point), int(ir.DataType.FLOAT)
    low, high = map(float, integer_range(kind))
    product = g.Round(g.Mul(g.Cast(total, to=wide), factor))
    whole = g.Add(product, g.Cast(zero_point, to=wide))
    whole = g.Where(g.IsNaN(whole), low, g.Clip(whole, low, high))
    return g.Cast(whole, to=int(kind))
