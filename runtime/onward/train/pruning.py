"""Pruning: the weights of smallest magnitude become 0, step by step, and stay so."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, final

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import Array, static_shape

if TYPE_CHECKING:
    from onward.train.run import Run
    from onward.train.schedules import Progress

__all__ = ["Pruning", "prune", "sparsity_of"]


@final
@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Magnitude pruning to a sparsity along a cubic schedule.

    After a share p of the updates between `start` and `end` the sparsity is sparsity · (1 − (1 − p)³).
    Source: M. Zhu, S. Gupta, "To prune, or not to prune", 2017, section 3.

    Attributes:
        sparsity: the share of elements that are 0 at the end, in (0, 1).
        start: the share of the run's updates before the first element is pruned.
        end: the share after which the sparsity is reached; training goes on to the end with the masks.
        every: updates between new masks; None: a fiftieth of those between start and end.
        targets: globs over names of trained weights of two axes or more; biases and scales are never pruned.
        scope: whether each weight gets this sparsity ("layer"), or all of them together ("global").
    """

    sparsity: float = 0.5
    start: float = 0.0
    end: float = 0.75
    every: int | None = None
    targets: tuple[str, ...] = ("*",)
    scope: Literal["layer", "global"] = "layer"

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", (self.targets,))
        if not isinstance(self.sparsity, numbers.Real) or not 0 < float(self.sparsity) < 1:
            raise ConfigError(f"pruning: sparsity must be in (0, 1), got {self.sparsity!r}")
        if not 0 <= self.start <= self.end <= 1:
            raise ConfigError(
                f"pruning: start and end must be shares with start <= end, got {self.start} and {self.end}"
            )
        if self.every is not None and self.every < 1:
            raise ConfigError(f"pruning: every must be at least 1 update, got {self.every}")
        if self.scope not in ("layer", "global"):
            raise ConfigError(f"pruning: scope must be layer or global, got {self.scope!r}")

    def parameters(self, model: ir.Model, trained: Sequence[str]) -> tuple[str, ...]:
        """The names of the trained weights that are pruned.

        Raises:
            ConfigError: a target matches none.
        """
        initializers = model.graph.initializers
        weights = [name for name in trained if len(static_shape(initializers[name]) or ()) > 1]
        for pattern in self.targets:
            if not any(fnmatchcase(name, pattern) for name in weights):
                raise ConfigError(
                    f"pruning: no trained weight of two axes or more matches {pattern!r}; there are "
                    f"{', '.join(weights[:20]) or 'none'}"
                )
        return tuple(n for n in weights if any(fnmatchcase(n, pattern) for pattern in self.targets))

    def due(self, at: Progress) -> float | None:
        """The sparsity of the masks that are made after so many updates; None: they stay."""
        first, last = self._first(at.updates), self._last(at.updates)
        if not first <= at.update <= last:
            return None
        every = self.every or max(1, (last - first) // 50)
        if at.update != last and (at.update - first) % every:
            return None
        left = (last - at.update) / (last - first) if last > first else 0.0
        return self.sparsity * (1 - left**3)

    def reached(self, at: Progress) -> bool:
        """Whether the sparsity is there."""
        return at.update >= self._last(at.updates)

    def _first(self, updates: int) -> int:
        return max(1, math.floor(self.start * updates))

    def _last(self, updates: int) -> int:
        return max(self._first(updates), math.floor(self.end * updates))


def prune(run: Run, rule: Pruning) -> None:
    """Make new masks where they are due, and put 0 where they say so."""
    sparsity = rule.due(run.progress())
    if sparsity is None:
        return
    state = dict(run.session.state)
    weights = {name: state[name] for name in run.layout.masks}
    masks = _masks(weights, sparsity, rule.scope)
    for name, mask in masks.items():
        state[run.layout.masks[name]] = mask.astype(state[name].dtype)
        state[name] = np.where(mask, state[name], state[name].dtype.type(0))
    run.replace_state(state)


def sparsity_of(weights: Mapping[str, Array]) -> dict[str, float]:
    """The share of zeros in each of these arrays."""
    return {name: 1 - np.count_nonzero(a) / max(a.size, 1) for name, a in weights.items()}


def _masks(weights: Mapping[str, Array], sparsity: float, scope: str) -> dict[str, Array]:
    if scope == "layer":
        return {
            name: _largest(np.abs(a).reshape(-1), sparsity).reshape(a.shape) for name, a in weights.items()
        }
    together = np.concatenate([np.abs(a).reshape(-1).astype(np.float64) for a in weights.values()])
    kept = _largest(together, sparsity)
    ends = np.cumsum([a.size for a in weights.values()])
    parts = np.split(kept, ends[:-1])
    return {name: part.reshape(a.shape) for (name, a), part in zip(weights.items(), parts, strict=True)}


def _largest(magnitudes: Array, sparsity: float) -> Array:
    """False for the smallest ones, as many as the sparsity says; of equal ones those that come first."""
    count = round(sparsity * magnitudes.size)
    mask = np.ones(magnitudes.size, np.bool_)
    if count:
        # many equal elements are what a partition is slowest on, and most are 0 by now
        others = magnitudes[magnitudes > 0]
        place = count - (magnitudes.size - others.size) - 1
        limit = magnitudes.dtype.type(0) if place < 0 else np.partition(others, place)[place]
        mask[magnitudes < limit] = False
        equal = np.flatnonzero(magnitudes == limit)
        mask[equal[: count - np.count_nonzero(~mask)]] = False
    return mask
