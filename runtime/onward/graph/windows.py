"""Sliding windows over axes of known extents: the geometry of convolution and pooling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias, final

import numpy as np

from onward.graph.types import Array

__all__ = ["Extents", "Geometry"]

Extents: TypeAlias = tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class Geometry:
    """A window over axes of known extents.

    Attributes:
        spatial: input extents.
        out: output extents.
        kernel: taps an axis.
        strides: steps of the window.
        dilations: steps between taps.
        begin: pads before each axis.
        end: pads behind each axis, as given or as `auto_pad` resolves them; a window may reach beyond them
            under `ceil_mode`.
    """

    spatial: Extents
    out: Extents
    kernel: Extents
    strides: Extents
    dilations: Extents
    begin: Extents
    end: Extents

    @property
    def span(self) -> Extents:
        """How far the last window reaches, counted from the first position of the begin padding."""
        return tuple(
            (o - 1) * s + d * (k - 1) + 1 if o else 0
            for o, s, d, k in zip(self.out, self.strides, self.dilations, self.kernel, strict=True)
        )

    @property
    def is_pointwise(self) -> bool:
        """Whether every window is one element and the output has the input's extents, unmoved."""
        return (
            all(k == 1 for k in self.kernel)
            and all(s == 1 for s in self.strides)
            and not any(self.begin)
            and self.out == self.spatial
        )

    @property
    def reduced(self) -> Geometry:
        """The same windows without taps that meet no input element in any of them.

        The result of a sum or maximum over input elements stays, and a window far larger than its input
        takes no more memory and time than one of the input's size. What average pooling divides by follows
        from the whole windows: `counts`.
        """
        kernel, begin = list(self.kernel), list(self.begin)
        for axis, (i, o, k, s, d, a) in enumerate(
            zip(self.spatial, self.out, self.kernel, self.strides, self.dilations, self.begin, strict=True)
        ):
            # of the first window the end counts, of the last one the beginning
            last = min(k - 1, (i - 1 + a) // d) if i and o else 0
            first = max(0, -(-(a - (o - 1) * s) // d)) if i and o else 0
            first = min(first, last, a // d)
            kernel[axis], begin[axis] = last - first + 1, a - first * d
        return replace(self, kernel=tuple(kernel), begin=tuple(begin))

    def counts(self, *, include_pad: bool, dtype: np.dtype[np.generic]) -> Array:
        """How many positions of each window average pooling divides by, shape `out`.

        Positions beyond the end padding, where `ceil_mode` lets a window reach, never count.
        """
        total = np.ones((), np.int64)
        for axis, (i, o) in enumerate(zip(self.spatial, self.out, strict=True)):
            k, s, d = self.kernel[axis], self.strides[axis], self.dilations[axis]
            a, b = self.begin[axis], self.end[axis]
            low, high = (0, a + i + b) if include_pad else (a, a + i)
            # Python's integers where the numbers of the window are beyond those of int64
            starts = np.arange(o, dtype=np.int64 if max(high, o * s, k * d) < 2**62 else object) * s
            inside = _taps(high - starts, k, d) - _taps(low - starts, k, d)
            total = np.multiply.outer(total, inside.astype(np.int64))
        return np.maximum(total, 1).astype(dtype)


def _taps(reach: Array, kernel: int, dilation: int) -> Array:
    """How many taps of windows lie before a position counted from the first of each."""
    return np.minimum(np.maximum(-(-reach // dilation), 0), kernel)
