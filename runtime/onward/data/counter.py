"""Random numbers as functions of counters: the same (seed, epoch, sample) gives the same bits, always.

Nothing here has state, so a run that resumes in the middle draws what the uninterrupted run drew, and a
sample's draws do not depend on the batch it sits in.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from statistics import NormalDist
from typing import final

import numpy as np
from numpy.typing import NDArray

from onward.errors import ConfigError

__all__ = ["Draws", "check_seed", "permutation"]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_NORMAL_BITS = 16


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014, with the constants of Stafford's variant 13): a bijection on 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _word(value: int) -> NDArray[np.uint64]:
    return np.array([value & _MASK], dtype=np.uint64)


def permutation(count: int, seed: int, stream: int) -> NDArray[np.int64]:
    """A random order of range(count), fixed by (seed, stream).

    Sorts the raw output of Philox under the key (seed, stream): NumPy guarantees a bit generator's stream
    across versions (NEP 19), which it does not for `Generator.permutation`.
    """
    check_seed(seed)
    words = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def check_seed(seed: int) -> None:
    """Raise ConfigError unless `seed` is an integer that fits 64 unsigned bits."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= _MASK:
        raise ConfigError(f"seed must be an integer from 0 to 2**64 - 1, not {seed!r}")


@final
@dataclass(frozen=True, eq=False)
class Draws:
    """One independent stream of random numbers for each of N samples; keys: uint64 of shape [N]."""

    keys: NDArray[np.uint64]

    @staticmethod
    def of(seed: int, epoch: int, indices: NDArray[np.int64]) -> Draws:
        """The streams of the samples with these indices (shape [N]) in this epoch."""
        check_seed(seed)
        base = _mix(_mix(_word(seed + _GOLDEN)) + _word((epoch + 1) * _GOLDEN))
        return Draws(_mix(base + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)))

    def child(self, number: int) -> Draws:
        """Streams independent of these and of every other child's."""
        return Draws(_mix(self.keys ^ _mix(_word((number + 1) * _GOLDEN))))

    def bits(self, count: int) -> NDArray[np.uint64]:
        """The first `count` words of every stream: uint64 of shape [N, count]."""
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        return _mix(self.keys[:, None] + steps)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Numbers in [0, 1): float64 of shape [N, count]."""
        return (self.bits(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, low: int, high: int, count: int) -> NDArray[np.int64]:
        """Integers from low to high, both included: int64 of shape [N, count]."""
        return low + np.floor(self.uniform(count) * (high - low + 1)).astype(np.int64)

    def normal(self, count: int) -> NDArray[np.float32]:
        """Standard normal numbers: float32 of shape [N, count].

        Looked up in a table of 65,536 quantiles: exact under any vector width, and bounded by 4.4.
        """
        words = self.bits(-(-count // 4)).view(np.uint16)
        return _normal_quantiles()[words[:, :count]]


@functools.cache
def _normal_quantiles() -> NDArray[np.float32]:
    size = 1 << _NORMAL_BITS
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / size) for i in range(size)], dtype=np.float32)
