"""Linear quantisation on NumPy arrays: y = saturate(round(x / scale) + zero_point), halves to even.

Scales and zero points are one for the tensor, one an index of `axis`, or one a block along `axis`. Divisions
and products are rounded as the element types say; integers in between are exact. A quotient that is not a
number becomes the lowest integer, as in onnxruntime.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, ShapeError
from onward.graph import Array, Builder, numpy_dtype, static_shape
from onward.ops.cast import converted

__all__ = [
    "INTEGER_TYPES",
    "centred",
    "dequantized",
    "fitting",
    "fitting_values",
    "integer_product_type",
    "integer_range",
    "quantized",
    "requantized",
    "spread",
    "spread_values",
    "wrapped",
]

INTEGER_TYPES = frozenset(
    {
        ir.DataType.INT2,
        ir.DataType.UINT2,
        ir.DataType.INT4,
        ir.DataType.UINT4,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT16,
        ir.DataType.UINT16,
    }
)
"""Integers that QuantizeLinear writes."""

_NARROW = frozenset({np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)})
_EXACT_IN_FLOAT32 = 1 << 24
_EXACT_IN_FLOAT64 = 1 << 53


def integer_range(dtype: ir.DataType) -> tuple[int, int]:
    """The smallest and largest integer of a type that QuantizeLinear writes."""
    bits = int(dtype.name.removeprefix("U").removeprefix("INT"))
    return (0, (1 << bits) - 1) if dtype.name.startswith("U") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def fitting(scale: Array, zero_point: Array | None) -> None:
    """Refuse a zero point that is not of its scale's shape; one number may be written as a vector or not.

    Raises:
        ShapeError: it is not.
    """
    if zero_point is not None and zero_point.shape != scale.shape and {zero_point.size, scale.size} != {1}:
        raise ShapeError(
            f"the scale's shape is {list(scale.shape)}, the zero point's {list(zero_point.shape)}"
        )


def spread(value: Array, shape: tuple[int, ...], axis: int, block_size: int) -> Array:
    """Scales or zero points in a form that broadcasts against a tensor of `shape`.

    Raises:
        ShapeError: they are neither one, nor one an index of the axis, nor one a block.
    """
    if value.size == 1 and value.ndim <= 1:
        return value.reshape(())
    if not -len(shape) <= axis < len(shape):
        raise ShapeError(f"axis {axis} is out of range for x of shape {list(shape)}")
    axis %= len(shape)
    if block_size == 0:
        if value.shape != (shape[axis],):
            raise ShapeError(
                f"scale or zero point of shape {list(value.shape)} is neither one for x of shape "
                f"{list(shape)} nor one an index of its axis {axis}; blocks have a block_size"
            )
        return value.reshape(-1, *(1,) * (len(shape) - axis - 1))
    if block_size < 0:
        raise InvalidModelError(f"attribute 'block_size' is {block_size}; it is 0 or more")
    blocks = -(-shape[axis] // block_size)
    if value.shape != (*shape[:axis], blocks, *shape[axis + 1 :]):
        raise ShapeError(
            f"scale or zero point of shape {list(value.shape)} does not fit x of shape {list(shape)} in "
            f"blocks of {block_size} along axis {axis}"
        )
    every = np.repeat(value, block_size, axis=axis)
    return every[(slice(None),) * axis + (slice(shape[axis]),)]


def fitting_values(scale: ir.Value, zero_point: ir.Value | None) -> None:
    """As `fitting`, of values of a graph whose shapes are known.

    Raises:
        As `fitting`.
    """
    shapes = [None if v is None else static_shape(v) for v in (scale, zero_point)]
    arrays = [None if shape is None else np.broadcast_to(np.int8(0), shape) for shape in shapes]
    assert arrays[0] is not None
    fitting(arrays[0], arrays[1])


def spread_values(
    g: Builder, value: ir.Value, shape: tuple[int, ...], axis: int, block_size: int
) -> ir.Value:
    """As `spread`, of values of a graph whose shapes are known.

    Raises:
        As `spread`.
    """
    extents = static_shape(value)
    assert extents is not None
    spread(np.broadcast_to(np.int8(0), extents), shape, axis, block_size)
    if math.prod(extents) == 1 and len(extents) <= 1:
        return g.Squeeze(value, g.const([0], np.int64)) if extents else value
    axis %= len(shape)
    if block_size == 0:
        trailing = list(range(1, len(shape) - axis))
        return g.Unsqueeze(value, g.const(trailing, np.int64)) if trailing else value
    return g.Gather(value, g.const(np.arange(shape[axis]) // block_size, np.int64), axis=axis)


def quantized(
    x: Array,
    scale: Array,
    zero_point: Array | None,
    dtype: ir.DataType,
    work: np.dtype[Any],
    *,
    saturate: bool = True,
) -> Array:
    """x in a quantised type; scale and zero point broadcast against it, the division is in `work`."""
    divisor = scale.astype(work)
    quotient = x.astype(work) / divisor
    if dtype in INTEGER_TYPES:
        low, high = integer_range(dtype)
        whole = np.rint(quotient.astype(np.float64, copy=False))
        if zero_point is not None:
            whole = whole + zero_point.astype(np.float64)
        whole = np.where(np.isnan(whole), low, np.clip(whole, low, high))
        return whole.astype(np.int32).astype(numpy_dtype(dtype))
    if zero_point is not None:
        offset = zero_point.astype(np.float32)
        quotient = np.where(offset == 0, quotient, quotient.astype(np.float32) + offset)
    return converted(quotient, int(dtype), saturate=saturate)


def dequantized(x: Array, scale: Array, zero_point: Array | None, dtype: np.dtype[Any]) -> Array:
    """(x - zero_point) · scale in a type of floats; 16-bit ones are computed in float32 and rounded once."""
    if x.dtype.kind in "iu" or x.dtype in (ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2):
        x = x.astype(np.int64)
        difference = x if zero_point is None else x - zero_point.astype(np.int64)
    else:
        difference = x.astype(np.float32)
        if zero_point is not None and np.any(offset := zero_point.astype(np.float32)):
            difference = difference - offset
    work = np.dtype(np.float32) if dtype in _NARROW else dtype
    return (difference.astype(work) * scale.astype(work)).astype(dtype, copy=False)


def centred(x: Array, zero_point: Array | None, work: np.dtype[Any]) -> Array:
    """x less its zero point, which broadcasts against it; exact."""
    wide = x.astype(work)
    return wide if zero_point is None else wide - zero_point.astype(work)


def integer_product_type(terms: int) -> np.dtype[Any]:
    """The floats in which a sum of so many products of centred 8-bit integers is exact: BLAS knows those."""
    largest = 255 * 255 * max(1, terms)
    if largest >= _EXACT_IN_FLOAT64:
        raise ShapeError(f"a sum of {terms} products of 8-bit integers is not exact in float64")
    return np.dtype(np.float32 if largest < _EXACT_IN_FLOAT32 else np.float64)


def wrapped(total: Array) -> Array:
    """Whole numbers as int32, which wraps around."""
    return total.astype(np.int64).astype(np.int32)


def requantized(total: Array, factor: Array, zero_point: Array) -> Array:
    """round(total · factor) + zero_point in the zero point's 8-bit type; the product is in float32."""
    dtype = ir.DataType.from_numpy(zero_point.dtype)
    product = total.astype(np.float32) * factor.astype(np.float32)
    one = np.ones((), np.float32)
    return quantized(product, one, zero_point, dtype, np.dtype(np.float32))
