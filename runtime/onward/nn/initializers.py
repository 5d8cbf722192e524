"""First values of parameters: seeded by (seed, parameter name), so one layer more changes no other.

Sources: Glorot & Bengio 2010 (Glorot), He et al. 2015, arXiv:1502.01852 (He), LeCun et al. 1998, "Efficient
BackProp" (LeCun), Saxe et al. 2014, arXiv:1312.6120 (orthogonal).
Names and distributions are Keras's: the normal variants of Glorot, He and LeCun are cut off at two standard
deviations.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from onward.errors import ConfigError
from onward.graph import Array

__all__ = [
    "Constant",
    "Fans",
    "Initializer",
    "Normal",
    "Orthogonal",
    "Uniform",
    "VarianceScaling",
    "generator",
    "names",
    "resolve",
]


_KEPT = 0.87962566103423978
"""The standard deviation of the standard normal distribution between −2 and 2."""


@final
@dataclass(frozen=True)
class Fans:
    """How many inputs one output sums (`fan_in`), and how many outputs one input feeds (`fan_out`)."""

    fan_in: float
    fan_out: float


class Initializer(ABC):
    """Draws the first values of one parameter."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, shape: Sequence[int], fans: Fans, dtype: np.dtype[Any]) -> Array:
        """An array of this shape and floating-point dtype."""


def _require_finite(initializer: Initializer, **fields: float) -> None:
    for field, value in fields.items():
        if not math.isfinite(value):
            raise ConfigError(
                f"initializer {type(initializer).__name__}: {field} must be finite, got {value}"
            )


@final
@dataclass(frozen=True)
class Constant(Initializer):
    """The same value everywhere."""

    value: float

    def __post_init__(self) -> None:
        _require_finite(self, value=self.value)

    def draw(self, rng: np.random.Generator, shape: Sequence[int], fans: Fans, dtype: np.dtype[Any]) -> Array:
        return np.full(shape, self.value, dtype)


@final
@dataclass(frozen=True)
class Normal(Initializer):
    """Normal with this standard deviation and mean."""

    std: float = 0.05
    mean: float = 0.0

    def __post_init__(self) -> None:
        _require_finite(self, std=self.std, mean=self.mean)
        if self.std < 0:
            raise ConfigError(f"initializer Normal: std must not be negative, got {self.std}")

    def draw(self, rng: np.random.Generator, shape: Sequence[int], fans: Fans, dtype: np.dtype[Any]) -> Array:
        return _normal(rng, shape, self.mean, self.std, dtype)


@final
@dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform over [low, high)."""

    low: float = -0.05
    high: float = 0.05

    def __post_init__(self) -> None:
        _require_finite(self, low=self.low, high=self.high)
        if self.high < self.low:
            raise ConfigError(f"initializer Uniform: low {self.low} is above high {self.high}")

    def draw(self, rng: np.random.Generator, shape: Sequence[int], fans: Fans, dtype: np.dtype[Any]) -> Array:
        return _uniform(rng, shape, self.low, self.high, dtype)


@final
@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """Zero mean and variance `scale / fan`, where fan is fan_in, fan_out or their mean.

    Attributes:
        distribution: "truncated_normal" draws again what lies beyond two standard deviations of the normal
            that is cut, and makes up for the variance that this takes; "untruncated_normal"; or "uniform".
    """

    scale: float = 1.0
    mode: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in"
    distribution: Literal["truncated_normal", "untruncated_normal", "uniform"] = "truncated_normal"

    def __post_init__(self) -> None:
        _require_finite(self, scale=self.scale)
        if self.scale <= 0:
            raise ConfigError(f"initializer VarianceScaling: scale must be positive, got {self.scale}")
        if self.mode not in ("fan_in", "fan_out", "fan_avg"):
            raise ConfigError(
                f"initializer VarianceScaling: mode is fan_in, fan_out or fan_avg, got {self.mode!r}"
            )
        if self.distribution not in ("truncated_normal", "untruncated_normal", "uniform"):
            raise ConfigError(
                "initializer VarianceScaling: distribution is truncated_normal, untruncated_normal or "
                f"uniform, got {self.distribution!r}"
            )

    def draw(self, rng: np.random.Generator, shape: Sequence[int], fans: Fans, dtype: np.dtype[Any]) -> Array:
        fan = {
            "fan_in": fans.fan_in,
            "fan_out": fans.fan_out,
            "fan_avg": (fans.fan_in + fans.fan_out) / 2,
        }[self.mode]
        std = math.sqrt(self.scale / fan)
        if self.distribution == "truncated_normal":
            return _truncated_normal(rng, shape, std / _KEPT, dtype)
        if self.distribution == "untruncated_normal":
            return _normal(rng, shape, 0.0, std, dtype)
        limit = math.sqrt(3.0) * std
        return _uniform(rng, shape, -limit, limit, dtype)


@final
@dataclass(frozen=True)
class Orthogonal(Initializer):
    """Rows (or columns, whichever are fewer) orthonormal, times gain; all axes but the first are one.

    The factorisation is LAPACK's: the last bits may differ between builds of it.
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        _require_finite(self, gain=self.gain)

    def draw(self, rng: np.random.Generator, shape: Sequence[int], fans: Fans, dtype: np.dtype[Any]) -> Array:
        rows, columns = shape[0], math.prod(shape[1:])
        tall = (max(rows, columns), min(rows, columns))
        q, r = np.linalg.qr(rng.standard_normal(tall, dtype=_drawn(dtype)))
        # without the sign of R's diagonal the factor Q is not uniformly distributed
        q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
        matrix = q if rows >= columns else q.T
        return (self.gain * matrix).reshape(shape).astype(dtype)


_BY_NAME: dict[str, Initializer] = {
    "zeros": Constant(0.0),
    "ones": Constant(1.0),
    "normal": Normal(),
    "uniform": Uniform(),
    "he_normal": VarianceScaling(2.0, "fan_in", "truncated_normal"),
    "he_uniform": VarianceScaling(2.0, "fan_in", "uniform"),
    "glorot_normal": VarianceScaling(1.0, "fan_avg", "truncated_normal"),
    "glorot_uniform": VarianceScaling(1.0, "fan_avg", "uniform"),
    "lecun_normal": VarianceScaling(1.0, "fan_in", "truncated_normal"),
    "lecun_uniform": VarianceScaling(1.0, "fan_in", "uniform"),
    "orthogonal": Orthogonal(),
}


def names() -> tuple[str, ...]:
    """The names that `resolve` knows."""
    return tuple(_BY_NAME)


def resolve(initializer: str | Initializer) -> Initializer:
    """The initialiser of a name; an initialiser is returned as it is.

    Raises:
        ConfigError: the name is unknown.
    """
    if isinstance(initializer, Initializer):
        return initializer
    if initializer not in _BY_NAME:
        raise ConfigError(f"unknown initializer {initializer!r}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[initializer]


def generator(seed: int, parameter: str) -> np.random.Generator:
    """The random numbers of one parameter: a function of the seed and the parameter's name alone."""
    digest = hashlib.blake2b(parameter.encode(), digest_size=16).digest()
    words = np.frombuffer(digest, "<u4").tolist()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))


def _drawn(dtype: np.dtype[Any]) -> type[np.float32] | type[np.float64]:
    """Generators draw float32 and float64; narrower types are rounded from float32."""
    return np.float64 if dtype == np.float64 else np.float32


def _normal(
    rng: np.random.Generator, shape: Sequence[int], mean: float, std: float, dtype: np.dtype[Any]
) -> Array:
    values: Array = rng.standard_normal(tuple(shape), dtype=_drawn(dtype))
    values *= std
    if mean != 0.0:
        values += mean
    return values.astype(dtype, copy=False)


def _truncated_normal(
    rng: np.random.Generator, shape: Sequence[int], std: float, dtype: np.dtype[Any]
) -> Array:
    values: Array = rng.standard_normal(tuple(shape), dtype=_drawn(dtype))
    flat = values.reshape(-1)
    while (beyond := np.flatnonzero(np.abs(flat) > 2)).size:
        flat[beyond] = rng.standard_normal(beyond.size, dtype=_drawn(dtype))
    values *= std
    return values.astype(dtype, copy=False)


def _uniform(
    rng: np.random.Generator, shape: Sequence[int], low: float, high: float, dtype: np.dtype[Any]
) -> Array:
    values: Array = rng.random(tuple(shape), dtype=_drawn(dtype))
    values *= high - low
    values += low
    return values.astype(dtype, copy=False)
