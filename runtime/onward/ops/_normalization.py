"""Normalization on NumPy arrays: statistics and gradients shared by the operators.

Statistics of float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

from math import prod

import numpy as np

from onward.graph import Array
from onward.ops._convolution import working_dtype

__all__ = ["batch_statistics", "grouped", "normalize", "normalize_gradient", "per_channel"]


def per_channel(values: Array, rank: int) -> Array:
    """A vector over channels, shaped to broadcast against [N, C, *] of this rank."""
    return values.reshape(-1, *(1,) * (rank - 2)) if rank > 1 else values


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and population variance of each channel of x [N, C, *], in at least float32."""
    axes = (0, *range(2, x.ndim))
    work = working_dtype(x.dtype)
    mean = np.mean(x, axis=axes, dtype=work)
    centred = x - per_channel(mean, x.ndim)
    return mean, np.mean(np.square(centred, out=centred), axis=axes, dtype=work)


def grouped(x: Array, groups: int) -> Array:
    """x [N, C, *] as [N, groups, elements of a group]."""
    return x.reshape(x.shape[0], groups, prod(x.shape[1:]) // groups)


def normalize(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """(x − mean) / sqrt(var + ε) over `axes`, the mean, and 1 / sqrt(var + ε), in at least float32."""
    work = working_dtype(x.dtype)
    mean = np.mean(x, axis=axes, keepdims=True, dtype=work)
    centred = x - mean
    var = np.mean(np.square(centred), axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(var + work.type(epsilon))
    centred *= inverse
    return centred, mean, inverse


def normalize_gradient(d: Array, normalized: Array, inverse: Array, axes: tuple[int, ...]) -> Array:
    """The gradient of `normalize` to x: inverse · (d − mean(d) − normalized · mean(d · normalized))."""
    mean = np.mean(d, axis=axes, keepdims=True)
    dx: Array = normalized * np.mean(d * normalized, axis=axes, keepdims=True)
    dx += mean
    np.subtract(d, dx, out=dx)
    dx *= inverse
    return dx
