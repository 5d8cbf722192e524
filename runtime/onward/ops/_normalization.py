"""Normalization on NumPy arrays: statistics and their gradients, shared by the operators."""

from __future__ import annotations

import numpy as np

from onward.graph import Array
from onward.ops._convolution import working_dtype

__all__ = ["batch_statistics", "normalization_gradient", "per_channel"]


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


def normalization_gradient(
    d_normalized: Array, normalized: Array, inverse: Array, axes: tuple[int, ...]
) -> Array:
    """The gradient to x of (x − mean) / sqrt(var + ε), with the statistics taken over `axes`.

    dx = inverse · (d − mean(d) − normalized · mean(d · normalized)), inverse = 1 / sqrt(var + ε).
    """
    mean = np.mean(d_normalized, axis=axes, keepdims=True)
    along = np.mean(d_normalized * normalized, axis=axes, keepdims=True)
    dx: Array = d_normalized - mean
    dx -= normalized * along
    dx *= inverse
    return dx
