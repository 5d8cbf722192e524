"""Turns of the event loop: how long the connections together may read before something else has its turn."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import final

__all__ = ["Turns"]

_SECONDS = 0.002


@final
class Turns:
    """Shares an event loop among connections: what they read in one turn ends after 2 ms, the rest waits in
    the order in which it came. Timers, finished runs and small reads never wait longer than that.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Callable[[float], None]] = deque()
        self._end = 0.0
        self._open = False

    def end(self) -> float:
        """When the turn that runs ends, as `time.perf_counter()`."""
        if not self._open:
            self._open = True
            self._end = time.perf_counter() + _SECONDS
            self._loop.call_soon(self._over)
        return self._end

    def wait(self, go_on: Callable[[float], None]) -> None:
        """Call `go_on` in a later turn with its end."""
        self.end()
        self._waiting.append(go_on)

    def _over(self) -> None:
        self._open = False
        if not self._waiting:
            return
        end = self.end()
        for _ in range(len(self._waiting)):
            self._waiting.popleft()(end)
            if time.perf_counter() > end:
                break
