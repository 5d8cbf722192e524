"""One thread or the thread team: which is faster for a run just now, measured.

Where another process keeps a core busy, a team's second thread runs half of the time, and the first waits for
the part that it was stopped in: several milliseconds, many times what a small network takes. Neither thread
can see that coming. So runs of few milliseconds are timed, with the team and by one thread alone, and the way
that takes less time is taken; how parts are cut does not change, so the bits do not either.
"""

from __future__ import annotations

from typing import final

__all__ = ["Pace"]

_WINDOW = 0.3e-3
"""Seconds, at least, whose runs are averaged before they are judged."""

_RUNS = 3
"""Runs, at least, that are averaged."""

_WARM = 0.2e-3
"""Seconds of a team's runs that are not counted after it has slept: waking a thread takes 30 to 50 µs."""

_SUSPECT = 1.25
"""The time a run takes, in units of what it took, at which the other way is tried."""

_GAIN = 0.95
"""A team's time, in units of one thread's, below which it is kept."""

_SHORTEST, _LONGEST = 0.3e-3, 100e-3
"""Seconds that one thread runs before the team is tried again: twice as long after each vain attempt."""

_LONG = 5e-3
"""Seconds of a run above which the team is always taken: stopped threads are waited for only a few times."""


@final
class Pace:
    """The choice for the runs of one array of steps; `team` is what the next run should use."""

    def __init__(self) -> None:
        self.team = True
        self._usual: float | None = None
        """Seconds of a run by the team when it was last found worth while."""
        self._one: float | None = None
        """Seconds of a run by one thread when last tried."""
        self._left = _WARM
        """Seconds to pass before runs count; by one thread: before the team is tried."""
        self._stay = _SHORTEST
        self._doubted = False
        """Whether the last runs took long: once may be chance."""
        self._seconds, self._runs, self._kept = 0.0, 0, 0.0

    def ran(self, seconds: float) -> None:
        """Say how long a run took that followed `team`."""
        if self.team:
            if seconds > _LONG and self._one is None:
                return
            if self._left > 0:
                self._left -= seconds
                return
        self._seconds += seconds
        self._runs += 1
        if self.team:
            if self._seconds >= _WINDOW and self._runs >= _RUNS:
                self._judge(self._seconds / self._runs)
        elif self._seconds >= self._left:
            self._one = self._seconds / self._runs
            self._turn(team=True, left=_WARM)

    def _judge(self, average: float) -> None:
        if self._one is None:  # never tried alone
            self._kept = 0.0
            self._turn(team=False, left=_WINDOW)
        elif self._usual is None:  # just tried again
            if average < _GAIN * self._one:
                self._usual, self._kept = average, 0.0
            else:
                self._stay = min(2 * self._stay, _LONGEST)
                self._turn(team=False, left=self._stay)
                return
            self._seconds, self._runs = 0.0, 0
        elif average > _SUSPECT * self._usual and not self._doubted:
            self._doubted = True
            self._seconds, self._runs = 0.0, 0
        elif average > _SUSPECT * self._usual:
            self._stay = _SHORTEST if self._kept > _LONGEST else min(2 * self._stay, _LONGEST)
            self._turn(team=False, left=self._stay)
        else:
            self._doubted = False
            self._usual = min(self._usual, average)
            self._kept += self._seconds
            self._seconds, self._runs = 0.0, 0

    def _turn(self, *, team: bool, left: float) -> None:
        self.team, self._left, self._usual, self._doubted = team, left, None, False
        self._seconds, self._runs = 0.0, 0
