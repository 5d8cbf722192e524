"""Which threads a run gets: a team where cores are free, else the calling thread alone."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import Counter, deque
from typing import final

from onward.engine.team import Team
from onward.processors import usable_cores

__all__ = ["Teams", "default_teams"]


@final
class Teams:
    """Teams by their number of threads, lent to one run each.

    A run gets a team as long as no more threads than `cores` are then at work for all runs together, and the
    only run always does. Any other runs on its own thread, as more threads than cores would only take turns.
    Teams are kept while somebody holds their size. Safe to use from several threads.
    """

    def __init__(self, cores: int | None = None) -> None:
        self.cores = usable_cores() if cores is None else cores
        self._start()
        _pools.add(self)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._busy = 0
        self._idle: dict[int, list[Team]] = {}
        self._holders: Counter[int] = Counter()
        self._forgotten: deque[int] = deque()

    def hold(self, threads: int) -> None:
        """Keep teams of so many threads until `release` was called as often."""
        with self._lock:
            self._holders[threads] += 1
        self._end_forgotten()

    def release(self, threads: int) -> None:
        """End the idle teams of a size when nobody holds it any more."""
        with self._lock:
            self._holders[threads] -= 1
            done = self._idle.pop(threads, []) if self._holders[threads] <= 0 else []
        for team in done:
            team.close()

    def forget(self, threads: int) -> None:
        """Release a size at the next call of `hold` or `give`: finalizers may do so, as it takes no lock."""
        self._forgotten.append(threads)

    def _end_forgotten(self) -> None:
        while self._forgotten:
            self.release(self._forgotten.popleft())

    def take(self, threads: int, *, wanted: bool = True) -> Team | None:
        """A team for a run; None: the run is to use its own thread. Each is given back with `give`."""
        with self._lock:
            if threads == 1 or not wanted or (self._busy and self._busy + threads > self.cores):
                self._busy += 1
                return None
            self._busy += threads
            if idle := self._idle.get(threads):
                return idle.pop()
        try:
            return Team(threads)
        except BaseException:
            with self._lock:
                self._busy -= threads
            raise

    def give(self, team: Team | None) -> None:
        """Say that the run is over that `take` gave this for."""
        if self._forgotten:
            self._end_forgotten()
        with self._lock:
            if team is None:
                self._busy = max(0, self._busy - 1)
                return
            self._busy = max(0, self._busy - team.threads)
            if self._holders[team.threads] > 0:
                self._idle.setdefault(team.threads, []).append(team)
                return
        team.close()


@functools.cache
def default_teams() -> Teams:
    """The process's teams."""
    return Teams()


_pools: weakref.WeakSet[Teams] = weakref.WeakSet()


def _after_fork() -> None:
    # The runs that were in progress are the parent's, and so may be the lock. Teams start threads of their
    # own.
    for pool in _pools:
        idle, holders, forgotten = pool._idle, pool._holders, pool._forgotten
        pool._start()
        pool._idle, pool._holders, pool._forgotten = idle, holders, forgotten


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
