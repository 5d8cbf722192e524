"""Counts and times of training jobs since the server started."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

__all__ = ["DURATION_BUCKETS", "ENDED", "JobStatistics"]

DURATION_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
"""Upper bounds of the histogram of durations, in seconds."""

ENDED = ("completed", "cancelled", "failed")
"""How jobs end."""

_RECENT_SECONDS = 60.0


@final
@dataclass(slots=True)
class _Pace:
    """Rows that a run has learned from, when that was told, and how many a second since the time before."""

    rows: int
    moment: float
    rate: float = 0.0


@final
@dataclass(slots=True)
class JobStatistics:
    """What became of jobs.

    Attributes:
        clock: seconds.
        ended: jobs by how they ended.
        durations: of runs by DURATION_BUCKETS; the last entry counts those above all bounds.
        seconds: that runs took, together.
        rows: that runs have learned from, together; a row counts in each epoch.
    """

    clock: Callable[[], float] = time.monotonic
    ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDED, 0))
    durations: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BUCKETS) + 1))
    seconds: float = 0.0
    rows: int = 0
    _paces: dict[str, _Pace] = field(default_factory=dict)

    def started(self, job: str) -> None:
        """A run of a job begins."""
        self._paces[job] = _Pace(0, self.clock())

    def progressed(self, job: str, rows: int) -> None:
        """A run has learned from so many rows since it began."""
        pace = self._paces.get(job)
        now = self.clock()
        if pace is None or rows <= pace.rows:
            return
        self.rows += rows - pace.rows
        rate = (rows - pace.rows) / max(now - pace.moment, 1e-3)
        self._paces[job] = _Pace(rows, now, rate)

    def stopped(self, job: str, seconds: float) -> None:
        """A run is over, however it ended; without effect where that is known already."""
        if self._paces.pop(job, None) is None:
            return
        self.seconds += seconds
        self.durations[bisect.bisect_left(DURATION_BUCKETS, seconds)] += 1

    @property
    def rows_per_second(self) -> float:
        """Of all runs, as they were told last; those that told nothing for a minute count as none."""
        now = self.clock()
        return sum(pace.rate for pace in self._paces.values() if now - pace.moment <= _RECENT_SECONDS)
