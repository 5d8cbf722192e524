"""The transforms of Winograd's F(m x m, 3 x 3): y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A for m x m outputs y.

g are the 3x3 taps and d the (m + 2) x (m + 2) inputs. The matrices are those of Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks", 2015: interpolation at 0, ±1 and infinity for m = 2, and ±2 too
for m = 4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

from onward.compile.codegen.values import Value

__all__ = ["Scheme", "scheme_of"]


class Scheme(ABC):
    """F(m x m, 3 x 3).

    Attributes:
        size: m.
        rows: for each row of Bᵀ, the inputs that it adds up; as many in every row.
        factors: what it multiplies them with.
        flops: operations of the input transform and of the output transform, for each square and channel.
    """

    size: int
    rows: tuple[tuple[int, ...], ...]
    factors: tuple[tuple[int, ...], ...]
    flops: tuple[int, int]

    @property
    def extent(self) -> int:
        """m + 2: positions of a transformed square along each axis."""
        return self.size + 2

    @property
    def positions(self) -> int:
        """Transformed values of a square."""
        return self.extent**2

    @abstractmethod
    def filter(self, a: Value, b: Value, c: Value) -> list[Value]:
        """G of three taps."""

    @abstractmethod
    def input(self, d: Sequence[Value]) -> list[Value]:
        """Bᵀ of m + 2 inputs."""

    @abstractmethod
    def output(self, v: Sequence[Value]) -> list[Value]:
        """Aᵀ of m + 2 positions."""


@final
class _Two(Scheme):
    size = 2
    rows = ((0, 2), (1, 2), (2, 1), (1, 3))
    factors = ((1, -1), (1, 1), (1, -1), (1, -1))
    flops = (32, 24)

    def filter(self, a: Value, b: Value, c: Value) -> list[Value]:
        half = (a + c) * 0.5
        return [a, half + b * 0.5, half - b * 0.5, c]

    def input(self, d: Sequence[Value]) -> list[Value]:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]

    def output(self, v: Sequence[Value]) -> list[Value]:
        return [v[0] + v[1] + v[2], v[1] - v[2] - v[3]]


@final
class _Four(Scheme):
    size = 4
    rows = ((0, 2, 4, 4), (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), (1, 3, 5, 5))
    factors = ((4, -5, 1, 0), (-4, -4, 1, 1), (4, -4, -1, 1), (-2, -1, 2, 1), (2, -1, -2, 1), (4, -5, 1, 0))
    flops = (240, 130)

    def filter(self, a: Value, b: Value, c: Value) -> list[Value]:
        one = (a + c) * (-1 / 6)
        two = a * (1 / 24) + c * (1 / 6)
        return [
            a * 0.25,
            one - b * (1 / 6),
            one + b * (1 / 6),
            two + b * (1 / 12),
            two - b * (1 / 12),
            c,
        ]

    def input(self, d: Sequence[Value]) -> list[Value]:
        a, b = d[4] - d[2] * 4.0, d[3] - d[1] * 4.0
        c, e = d[4] - d[2], (d[3] - d[1]) * 2.0
        first = d[0] * 4.0 - d[2] * 5.0 + d[4]
        last = d[1] * 4.0 - d[3] * 5.0 + d[5]
        return [first, a + b, a - b, c + e, c - e, last]

    def output(self, v: Sequence[Value]) -> list[Value]:
        p, q, r, s = v[1] + v[2], v[1] - v[2], v[3] + v[4], v[3] - v[4]
        return [v[0] + p + r, q + s * 2.0, p + r * 4.0, q + s * 8.0 + v[5]]


_SCHEMES: dict[int, Scheme] = {2: _Two(), 4: _Four()}


def scheme_of(size: int) -> Scheme:
    """F(size x size, 3 x 3). Raises `KeyError` for a size other than 2 and 4."""
    return _SCHEMES[size]
