"""Random numbers of the standard's operators: functions of the seed and the position (Philox)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Op, numpy_dtype
from onward.ops._philox import uniform

__all__ = ["Normal", "Random", "Uniform", "kind_of", "seed_word", "uniforms"]

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


@dataclass(frozen=True, kw_only=True)
class Random(Op):
    """What operators with random numbers have in common."""

    seed: float | None = None

    @property
    def varies(self) -> bool:
        return self.seed is None


@dataclass(frozen=True, kw_only=True)
class Uniform(Random):
    """Numbers evenly distributed in [low, high): the same for the same seed."""

    high: float = 1.0
    low: float = 0.0

    def draw(self, shape: tuple[int, ...], dtype: ir.DataType) -> Array:
        """Numbers of a shape."""
        return uniforms(self.seed, shape, dtype, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Normal(Random):
    """Normally distributed numbers, by the method of Box and Muller (1958): the same for the same seed."""

    mean: float = 0.0
    scale: float = 1.0

    def draw(self, shape: tuple[int, ...], dtype: ir.DataType) -> Array:
        """Numbers of a shape."""
        first, step = seed_word(self.seed)
        radius = np.sqrt(-2 * np.log1p(-uniform(first, step, 0, shape).astype(np.float64)))
        angle = 2 * np.pi * uniform(first, step, 1, shape).astype(np.float64)
        return (self.mean + self.scale * radius * np.cos(angle)).astype(numpy_dtype(dtype))


def kind_of(dtype: int | None, like: Array) -> ir.DataType:
    """The element type that an attribute names, or that of an array."""
    return ir.DataType.from_numpy(like.dtype) if dtype is None else ir.DataType(dtype)
