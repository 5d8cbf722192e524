"""Sums over neighbouring channels, for local response normalization."""

from __future__ import annotations

import numpy as np

from onward.graph import Array

__all__ = ["channel_band", "channel_sum", "scale_base"]


def channel_sum(x: Array, below: int, above: int) -> Array:
    """y[n, c] = Σ x[n, c'] over c − below ≤ c' ≤ c + above, for x [N, C, *]."""
    y = x.copy()
    channels = x.shape[1]
    for shift in range(1, min(below, channels - 1) + 1):
        y[:, shift:] += x[:, :-shift]
    for shift in range(1, min(above, channels - 1) + 1):
        y[:, :-shift] += x[:, shift:]
    return y


def channel_band(channels: int, size: int, dtype: np.dtype[np.generic]) -> Array:
    """The matrix [C, C] that sums the `size` neighbours of each channel: its transpose is the adjoint."""
    offset = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    return ((offset >= -((size - 1) // 2)) & (offset <= size // 2)).astype(dtype)


def scale_base(x: Array, size: int, alpha: float, bias: float) -> Array:
    """bias + alpha / size · Σ x² over `size` neighbouring channels."""
    base = channel_sum(np.square(x), (size - 1) // 2, size // 2)
    base *= x.dtype.type(alpha / size)
    base += x.dtype.type(bias)
    return base
