"""Learning-rate schedules: the factor of the base learning rate at an update.

Each is a pure function of where the run stands, except ReduceOnPlateau, whose state is part of a checkpoint.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, final

from onward.errors import ConfigError
from onward.train._named import create

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Progress",
    "ReduceOnPlateau",
    "Schedule",
    "Step",
    "schedule_named",
]


@final
@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        update: optimizer updates done so far.
        updates: optimizer updates of the whole run.
        epoch: epochs finished, counted from 0.
        epochs: epochs of the whole run.
    """

    update: int
    updates: int
    epoch: int
    epochs: int = 1


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """What every schedule has.

    Attributes:
        warmup: updates over which the factor first rises linearly from 1 / warmup to what the schedule says.
    """

    warmup: int = 0

    def factor(self, at: Progress, state: dict[str, float]) -> float:
        """The factor of the base learning rate; `state` is the schedule's own, kept in checkpoints."""
        ramp = min(1.0, (at.update + 1) / self.warmup) if self.warmup else 1.0
        return ramp * self._factor(at, state)

    def over(self, epochs: int) -> Schedule:
        """The same schedule, with its length written down where it is as long as a run of so many epochs."""
        return self

    @abstractmethod
    def _factor(self, at: Progress, state: dict[str, float]) -> float: ...


@final
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Always 1."""

    def _factor(self, at: Progress, state: dict[str, float]) -> float:
        return 1.0


@final
@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """gamma to the power of the whole number of `every` epochs that have passed."""

    every: int = 10
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"schedule step: every must be at least 1 epoch, got {self.every}")

    def _factor(self, at: Progress, state: dict[str, float]) -> float:
        return float(self.gamma ** (at.epoch // self.every))


@final
@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """gamma to the power of the epoch."""

    gamma: float = 0.95

    def _factor(self, at: Progress, state: dict[str, float]) -> float:
        return float(self.gamma**at.epoch)


@final
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """From 1 down to `minimum` along half a cosine, over the updates after the warm-up.

    Source: I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017,
    equation 5, without restarts.

    Attributes:
        minimum: the factor at the end, and from there on.
        epochs: how long it is, warm-up included; None: as long as the run. A run that is resumed with more
            epochs needs one that is as long as the first.
    """

    minimum: float = 0.0
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"schedule cosine: epochs must be at least 1, got {self.epochs}")

    def over(self, epochs: int) -> Schedule:
        return self if self.epochs is not None else replace(self, epochs=epochs)

    def _factor(self, at: Progress, state: dict[str, float]) -> float:
        updates = at.updates if self.epochs is None else at.updates // at.epochs * self.epochs
        length = max(1, updates - self.warmup)
        done = min(max(0, at.update - self.warmup) / length, 1.0)
        return self.minimum + (1 - self.minimum) * 0.5 * (1 + math.cos(math.pi * done))


@final
@dataclass(frozen=True, kw_only=True)
class ReduceOnPlateau(Schedule):
    """Multiplied by `gamma` whenever the watched loss has not improved for `patience` epochs.

    Epochs are counted as `EarlyStopping` and Keras count them: with patience 1, and 0, after the first one.

    Attributes:
        threshold: an improvement is a loss below best · (1 − threshold).
        minimum: the factor never falls below this.
    """

    gamma: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    minimum: float = 0.0

    def _factor(self, at: Progress, state: dict[str, float]) -> float:
        return state.get("factor", 1.0)

    def observe(self, loss: float, state: dict[str, float]) -> None:
        """Take in the watched loss of an epoch; NaN is no improvement."""
        if math.isnan(loss):
            warnings.warn(
                "the loss that the schedule watches is NaN, which it takes for no improvement",
                RuntimeWarning,
                stacklevel=2,
            )
        best = state.get("best")
        if not math.isnan(loss) and (best is None or loss < best * (1 - self.threshold)):
            state["best"], state["bad"] = loss, 0.0
            return
        state["bad"] = state.get("bad", 0.0) + 1
        if state["bad"] >= self.patience:
            state["factor"] = max(self.minimum, state.get("factor", 1.0) * self.gamma)
            state["bad"] = 0.0


_NAMES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": Step,
    "exponential": Exponential,
    "cosine": Cosine,
    "plateau": ReduceOnPlateau,
}


def schedule_named(name: str, **options: Any) -> Schedule:
    """A schedule by its name in configuration files.

    Raises:
        ConfigError: an unknown name or option.
    """
    return create("schedule", _NAMES, name, options)
