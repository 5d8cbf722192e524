"""Exact products and convolutions of 8-bit integers."""

from __future__ import annotations

import numpy as np

from onward.errors import ShapeError
from onward.graph import Array
from onward.ops._convolution import convolve
from onward.ops._quantization import centred, integer_product_type
from onward.ops._window import Geometry

__all__ = ["by_channel", "by_row", "integer_convolve", "integer_matmul"]


def by_row(value: Array, rank: int) -> Array:
    """Numbers of a left operand: a vector has one a row."""
    if value.size == 1:
        return value.reshape(())
    return value[:, None] if value.ndim == 1 and rank > 1 else value


def _by_column(value: Array) -> Array:
    return value.reshape(()) if value.size == 1 else value


def integer_matmul(a: Array, b: Array, a_zero: Array | None, b_zero: Array | None) -> Array:
    """(a − a_zero) · (b − b_zero) in floats that hold it exactly.

    Raises:
        ShapeError: a zero point does not fit its operand.
    """
    work = integer_product_type(a.shape[-1] if a.ndim else 1)
    left = centred(a, None if a_zero is None else by_row(a_zero, a.ndim), work)
    right = centred(b, None if b_zero is None else _by_column(b_zero), work)
    if left.shape != a.shape or right.shape != b.shape:
        raise ShapeError(f"zero points do not fit operands of shapes {list(a.shape)} and {list(b.shape)}")
    return np.matmul(left, right)


def by_channel(value: Array, channels: int, rank: int) -> Array:
    """Numbers of weights [O, C/group, *kernel]: one, or one an output channel.

    Raises:
        ShapeError: there are as many as neither.
    """
    if value.size == 1:
        return value.reshape(())
    if value.shape != (channels,):
        raise ShapeError(f"{list(value.shape)} is neither one nor one for each of {channels} output channels")
    return value.reshape(-1, *(1,) * (rank - 1))


def integer_convolve(
    x: Array, w: Array, x_zero: Array | None, w_zero: Array | None, geometry: Geometry, group: int
) -> Array:
    """The convolution of (x − x_zero) with (w − w_zero), exact in floats; padding is x_zero."""
    work = integer_product_type(int(np.prod(w.shape[1:])))
    if x_zero is not None and x_zero.size != 1:
        raise ShapeError(f"x_zero_point of shape {list(x_zero.shape)} is not one for the tensor")
    left = centred(x, None if x_zero is None else x_zero.reshape(()), work)
    right = centred(w, None if w_zero is None else by_channel(w_zero, w.shape[0], w.ndim), work)
    return convolve(left, right, geometry, group)
