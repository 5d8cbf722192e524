"""Resampling along an axis: each position of the result is a weighted sum of a few of the operand's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from onward.graph.types import Array

__all__ = ["Resampling"]


@final
@dataclass(frozen=True, eq=False)
class Resampling:
    """A sparse matrix along an axis: y[i] = outside[i] + Σ weights[k] · x[indices[k]], k from starts[i] to
    starts[i + 1].

    Attributes:
        extent: of the operand's axis.
        starts: int64, one more than the result has positions.
        indices: int64, within [0, extent).
        weights: float64.
        outside: what positions without a source have, float64 by position of the result; None where all have
            one, or have 0.
    """

    extent: int
    starts: Array
    indices: Array
    weights: Array
    outside: Array | None = None

    @property
    def out(self) -> int:
        """The extent of the result's axis."""
        return len(self.starts) - 1

    @property
    def taps(self) -> int | None:
        """How many positions each sum has, if all have as many."""
        counts = np.unique(np.diff(self.starts))
        return int(counts[0]) if len(counts) == 1 else None

    @property
    def most(self) -> int:
        """How many positions the longest sum has."""
        return int(np.diff(self.starts).max(initial=0))

    @property
    def picks(self) -> bool:
        """Whether every position is a copy of one."""
        return self.taps == 1 and self.outside is None and bool(np.all(self.weights == 1))

    def apply(self, x: Array, axis: int) -> Array:
        """The resampled x, in its type; one that is no float must only be picked from."""
        if self.picks:
            return np.take(x, self.indices, axis)
        trailing = (1,) * (x.ndim - axis - 1)
        y = np.zeros((*x.shape[:axis], self.out, *x.shape[axis + 1 :]), x.dtype)
        filled = np.flatnonzero(np.diff(self.starts))
        if len(filled):
            terms = np.take(x, self.indices, axis)
            terms *= self.weights.astype(x.dtype).reshape(-1, *trailing)
            sums = np.add.reduceat(terms, self.starts[filled], axis, dtype=x.dtype)
            np.moveaxis(y, axis, 0)[filled] = np.moveaxis(sums, axis, 0)
        if self.outside is not None:
            y += self.outside.astype(x.dtype).reshape(-1, *trailing)
        return y

    def transposed(self) -> Resampling:
        """The transpose of the matrix, without what lies outside."""
        rows = np.repeat(np.arange(self.out), np.diff(self.starts))
        order = np.argsort(self.indices, kind="stable")
        counts = np.bincount(self.indices, minlength=self.extent)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Resampling(self.out, starts, rows[order], self.weights[order])

    def matrix(self) -> Array:
        """The matrix [out, extent] in float64."""
        dense = np.zeros((self.out, self.extent))
        rows = np.repeat(np.arange(self.out), np.diff(self.starts))
        np.add.at(dense, (rows, self.indices), self.weights)
        return dense
