"""One comparison: both sides in turns on the same weights and data, results checked against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.suite.ours import Ours
from benchmarks.suite.peers import Peer

__all__ = ["Comparison", "DifferentResultsError", "Settings", "compare"]

FIRST_STEP = 1e-4
"""Relative tolerance of the first loss, and of logits over their largest magnitude."""

LATER_STEPS = 2e-2
"""Relative tolerance of the losses of the steps after it: rounding grows from update to update, most of all
through batch normalization: torch's own two layouts differ by 1e-2 in ResNet-50's third loss."""

_CHECKED = 4
_MOST_STEPS = 300
_SETTLE = 0.05
"""Seconds between turns, in which a side's threads stop spinning."""


class DifferentResultsError(Exception):
    """The two sides do not compute the same."""


@dataclass(frozen=True)
class Settings:
    """How long and how often: seconds for one comparison, and turns of each side."""

    seconds: float = 15.0
    rounds: int = 5


@dataclass(frozen=True)
class Comparison:
    """Seconds of every step of both sides."""

    ours: Sequence[float]
    peer: Sequence[float]

    @property
    def ratio(self) -> float:
        """Ours by the peer's median."""
        return statistics.median(self.ours) / statistics.median(self.peer)


def check(ours: Sequence[np.ndarray[Any, Any]], peer: Sequence[np.ndarray[Any, Any]]) -> None:
    """Raise `DifferentResultsError` where results of the same steps differ by more than the tolerances."""
    for i, (a, b) in enumerate(zip(ours, peer, strict=True)):
        allowed = FIRST_STEP if i == 0 or a.ndim else LATER_STEPS
        scale = float(np.abs(b).max())
        worst = float(np.abs(a.reshape(b.shape) - b).max())
        if not worst <= allowed * max(scale, 1e-2):
            raise DifferentResultsError(
                f"step {i + 1}: results differ by {worst:.2e} where the peer's are up to {scale:.2e}"
            )


def compare(ours: Ours, peer: Peer, settings: Settings, cpu: bool = False) -> Comparison:
    """Measure both sides.

    Every turn starts from the initial state with a step that is not timed. The number of steps a turn follows
    from the time there is.

    Raises:
        DifferentResultsError: losses or logits are not the same.
    """
    clock = time.thread_time if cpu else time.perf_counter
    peer.times(1)
    ours.times(1, clock)
    peer.reset()
    ours.reset()
    began = time.perf_counter()
    their_seconds, theirs = peer.times(_CHECKED)
    our_seconds, mine = ours.times(_CHECKED, clock)
    both = (time.perf_counter() - began) / _CHECKED
    check(mine, theirs)
    steps = max(1, min(_MOST_STEPS, int(settings.seconds / settings.rounds / both) - 1))
    our_times: list[float] = []
    their_times: list[float] = []
    for turn in range(settings.rounds):
        for side in (0, 1) if turn % 2 else (1, 0):
            time.sleep(_SETTLE)
            if side == 0:
                ours.reset()
                ours.times(1, clock)
                our_times += ours.times(steps, clock)[0]
            else:
                peer.reset()
                peer.times(1)
                their_times += peer.times(steps)[0]
        if time.perf_counter() - began > 2 * settings.seconds:
            break
    if steps == 1:
        our_times += our_seconds
        their_times += their_seconds
    return Comparison(our_times, their_times)
