"""Random numbers of the standard's operators: functions of the seed and the position (Philox)."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from onward.graph import Array, numpy_dtype
from onward.ops._philox import uniform

__all__ = ["normals", "seed_word", "uniforms"]

_draws = itertools.count()


def seed_word(seed: float | None) -> tuple[int, int]:
    """Seed and step of a draw: the attribute's bits; without one, the next of the process's own draws."""
    if seed is None:
        return 0x5EED, next(_draws)
    return int(np.float32(seed).view(np.uint32)), 0


def uniforms(
    seed: float | None, shape: tuple[int, ...], dtype: ir.DataType, low: float, high: float
) -> Array:
    """Numbers evenly distributed in [low, high)."""
    first, step = seed_word(seed)
    u = uniform(first, step, 0, shape).astype(np.float64)
    return (low + (high - low) * u).astype(numpy_dtype(dtype))


def normals(
    seed: float | None, shape: tuple[int, ...], dtype: ir.DataType, mean: float, scale: float
) -> Array:
    """Normally distributed numbers, by the method of Box and Muller (1958)."""
    first, step = seed_word(seed)
    radius = np.sqrt(-2 * np.log1p(-uniform(first, step, 0, shape).astype(np.float64)))
    angle = 2 * np.pi * uniform(first, step, 1, shape).astype(np.float64)
    return (mean + scale * radius * np.cos(angle)).astype(numpy_dtype(dtype))
