"""The loss over many batches: a mean over all samples that count, at any batching."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import numpy as np

from onward.graph import Array
from onward.train.metrics import Ranks

__all__ = ["MeanLoss"]


@final
class MeanLoss:
    """Adds up what steps and evaluations give: Σ total / Σ weight, in float64.

    Args:
        totals: outputs that are sums of losses, and for each the output that is the sum of its weights.
    """

    def __init__(self, totals: Mapping[str, str]) -> None:
        self._totals = dict(totals)
        self._sums: dict[str, tuple[float, float]] = {}
        self.reset()

    def add(self, results: Mapping[str, Array]) -> float:
        """Add a batch's outputs; gives the sum of its weights."""
        batch = 0.0
        for name, weight in self._totals.items():
            total, weights = self._sums[name]
            self._sums[name] = total + float(results[name]), weights + float(results[weight])
            batch += float(results[weight])
        return batch

    def join(self, ranks: Ranks) -> None:
        """Add the batches of all other ranks."""
        sums = ranks.sum(np.array(list(self._sums.values()), np.float64))
        self._sums = {name: (float(t), float(w)) for name, (t, w) in zip(self._sums, sums, strict=True)}

    def value(self) -> float:
        """The mean; NaN where nothing counted."""
        sums = [(total, weight) for total, weight in self._sums.values() if weight > 0]
        return sum(total / weight for total, weight in sums) if sums else math.nan

    def reset(self) -> None:
        """Forget every batch."""
        self._sums = dict.fromkeys(self._totals, (0.0, 0.0))

    def state(self) -> dict[str, tuple[float, float]]:
        """The sums, as plain data."""
        return dict(self._sums)

    def load_state(self, state: Mapping[str, tuple[float, float]]) -> None:
        """Go on from what `state` gave."""
        self._sums = {name: (float(total), float(weight)) for name, (total, weight) in state.items()}
