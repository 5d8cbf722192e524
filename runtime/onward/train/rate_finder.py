"""Finds a learning rate: one short run in which the rate grows, and the loss says where it learns fastest."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from onward.errors import ConfigError
from onward.train.schedules import Progress, Schedule

if TYPE_CHECKING:
    from onward.train.run import Run

__all__ = ["RateFinding", "Sweep", "sweep"]

_SMOOTHING = 0.9
_DIVERGED = 4.0
"""A smoothed loss of so many times the lowest ends the search."""
_FEWEST = 10
_WIDTH, _HEIGHT = 60, 12


@final
@dataclass(frozen=True)
class RateFinding:
    """Losses by learning rate.

    Attributes:
        rates: one an update, ascending.
        losses: of the batches of these updates.
        smoothed: their exponential moving average.
        suggestion: the rate at which the smoothed loss falls fastest; None where it never fell.
        diverged: whether the loss grew beyond all bounds before the last rate.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    diverged: bool

    def table(self, rows: int = 12) -> list[tuple[float, float, float]]:
        """Rate, loss and smoothed loss at so many places along the search."""
        places = sorted({round(i) for i in np.linspace(0, len(self.rates) - 1, rows)})
        return [(self.rates[i], self.losses[i], self.smoothed[i]) for i in places]

    def plot(self) -> str:
        """The smoothed loss over the rates, in characters; `^` stands below the suggestion."""
        low, high = min(self.smoothed), max(self.smoothed)
        columns = [round(i) for i in np.linspace(0, len(self.rates) - 1, min(_WIDTH, len(self.rates)))]
        span = (high - low) or 1.0
        heights = [round((self.smoothed[i] - low) / span * (_HEIGHT - 1)) for i in columns]
        lines = []
        for level in range(_HEIGHT - 1, -1, -1):
            label = f"{high:.3g}" if level == _HEIGHT - 1 else f"{low:.3g}" if level == 0 else ""
            lines.append(f"{label:>9} |" + "".join("*" if h == level else " " for h in heights).rstrip())
        lines.append(" " * 10 + "+" + "-" * len(columns))
        if self.suggestion is not None:
            place = min(
                range(len(columns)), key=lambda i: abs(math.log(self.rates[columns[i]] / self.suggestion))
            )
            lines.append(" " * (11 + place) + "^")
        left, right = f"{self.rates[0]:.2g}", f"{self.rates[-1]:.2g}"
        lines.append(" " * 11 + left + right.rjust(len(columns) - len(left)))
        return "\n".join(lines)

    def __str__(self) -> str:
        if self.suggestion is None:
            return "no learning rate lowered the loss: search lower ones, or look at the data"
        return f"suggested learning rate: {self.suggestion:.2g}"


@final
@dataclass(frozen=True, kw_only=True)
class Sweep(Schedule):
    """From `first` to `last`, each update's rate the same multiple of the one before."""

    first: float
    last: float
    updates: int

    def __post_init__(self) -> None:
        if not 0 < self.first < self.last < math.inf:
            raise ConfigError(
                f"learning rates must be above 0 and ascending, got {self.first} to {self.last}"
            )
        if self.updates < _FEWEST:
            raise ConfigError(f"a search takes at least {_FEWEST} updates, got {self.updates}")

    def _factor(self, at: Progress, state: dict[str, float]) -> float:
        share = min(at.update / (self.updates - 1), 1.0)
        return float(self.first * (self.last / self.first) ** share)


def sweep(run: Run, updates: int) -> RateFinding:
    """Do the run's updates until all rates are tried or the loss has diverged.

    Source: L. Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3.
    """
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    window: list[float] = []
    average = 0.0
    while len(rates) < updates:
        with contextlib.closing(run.batches(run.epoch, 0)) as batches:
            for batch in batches:
                run.advance(batch)
                window.append(run.last["loss"])
                if run.batch % run.accumulate and run.batch != len(run.loader):
                    continue
                loss = math.fsum(window) / len(window)
                window.clear()
                average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
                value = average / (1 - _SMOOTHING ** (len(rates) + 1))
                if not math.isfinite(loss) or (smoothed and value > _DIVERGED * min(smoothed)):
                    return _found(rates, losses, smoothed, True)
                rates.append(run.last["learning_rate"])
                losses.append(loss)
                smoothed.append(value)
                if len(rates) == updates:
                    break
        run.epoch, run.batch = run.epoch + 1, 0
    return _found(rates, losses, smoothed, False)


def _found(rates: list[float], losses: list[float], smoothed: list[float], diverged: bool) -> RateFinding:
    if len(rates) < 3:
        raise ConfigError(
            "the loss is not finite, or grows beyond all bounds, at the lowest rates already: search lower "
            "ones, or look at the data"
        )
    slope = np.gradient(np.array(smoothed), np.log(rates))
    # an average lags behind its figures, so the first slopes are of noise alone, as are the last
    first = min(len(rates) // 10, len(rates) - 2)
    place = first + int(np.argmin(slope[first:-1]))
    suggestion = rates[place] if slope[place] < 0 else None
    return RateFinding(tuple(rates), tuple(losses), tuple(smoothed), suggestion, diverged)
