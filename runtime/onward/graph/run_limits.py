"""How long loops may go on, and what they may hold, before a run of them is refused."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any, final

from onward.errors import ConfigError, LimitError

__all__ = ["Budget", "RunLimits", "budget", "run_limits"]


@final
@dataclass(frozen=True, slots=True)
class RunLimits:
    """What the loops of one run may take.

    Args:
        max_iterations: iterations of a Loop or Scan, those of the loops inside included.
        max_open_iterations: iterations of a Loop that only its condition ends: of one that never does.
        max_loop_bytes: what a loop's states and collected outputs hold together.
        max_open_seconds: how long a Loop that only its condition ends may go on. Iterations below 1,000 are
            not counted against it: a body that takes long does so without a loop, too.
        max_seconds: how long any other Loop or Scan may go on. It is refused after a few seconds where its
            pace says that it would take longer.

    Raises:
        ConfigError: a bound is below 1.
    """

    max_iterations: int = 1 << 20
    max_open_iterations: int = 1 << 17
    max_loop_bytes: int = 1 << 32
    max_open_seconds: float = 10.0
    max_seconds: float = 120.0

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not getattr(self, limit.name) >= (1 if limit.type == "int" else 0):
                raise ConfigError(f"{limit.name} is {getattr(self, limit.name)}: give at least 1")


@final
@dataclass(slots=True)
class Budget:
    """What is left of the limits while a loop runs."""

    limits: RunLimits
    iterations: int = field(default=0)
    began: float = field(default_factory=time.monotonic)

    def admit(self, iterations: int) -> None:
        """Refuse a loop that is known to run so often, before it runs.

        Raises:
            LimitError: that is more than the limit.
        """
        if self.iterations + iterations > self.limits.max_iterations:
            raise LimitError(f"it asks for {iterations:,} iterations, {self._most()}")

    def iterate(self) -> None:
        """Count an iteration that is about to run.

        Raises:
            LimitError: the limit has been reached.
        """
        if self.iterations >= self.limits.max_iterations:
            raise LimitError(f"it goes on after {self.iterations:,} iterations, {self._most()}")
        self.iterations += 1

    def keep_pace(self, done: int, trips: int | None, began: float) -> None:
        """Refuse a loop that goes on for too long, or will.

        Args:
            done: its iterations so far.
            trips: how many there will be, where that is known.
            began: when it began, of `time.monotonic`.

        Raises:
            LimitError: a limit has been reached, or will be.
        """
        if done % _LOOKS_EVERY and done > _LOOKS_EVERY:
            return
        most, passed = self.limits.max_seconds, time.monotonic() - began
        if passed > most or (time.monotonic() - self.began > most):
            raise LimitError(
                f"it goes on after {passed:,.0f} seconds and {done:,} iterations, and the limit is {most:g}: "
                "bound it with a smaller M, or raise the limit with run_limits(max_seconds=...)"
            )
        if trips is not None and passed > _SAYS_PACE and done and passed / done * trips > most:
            raise LimitError(
                f"its {trips:,} iterations would take {passed / done * trips:,.0f} seconds at the pace of "
                f"the first {done:,}, and the limit is {most:g}: bound it with a smaller M, or raise the "
                "limit with run_limits(max_seconds=...)"
            )

    def go_on(self, done: int, began: float) -> None:
        """Refuse the next iteration of a loop that only its condition ends, and that began then.

        Raises:
            LimitError: a limit has been reached.
        """
        passed = time.monotonic() - began
        if done >= _OPEN_FOR_SURE and passed > self.limits.max_open_seconds:
            raise LimitError(
                f"its condition is still true after {passed:.0f} seconds and {done:,} iterations, and the "
                f"limit where nothing else ends it is {self.limits.max_open_seconds:g} seconds: bound it "
                "with a smaller M, or raise the limit with run_limits(max_open_seconds=...)"
            )
        if done >= self.limits.max_open_iterations:
            raise LimitError(
                f"its condition is still true after {done:,} iterations, the limit where nothing else ends "
                "it: bound it with a smaller M, or raise the limit with run_limits(max_open_iterations=...)"
            )

    def hold(self, kept: int, when: str) -> None:
        """Refuse a loop that holds, or is known to end up with, so many bytes.

        Raises:
            LimitError: that is more than the limit.
        """
        if kept > self.limits.max_loop_bytes:
            raise LimitError(
                f"{when} its states and collected outputs hold {kept:,} bytes, and the limit is "
                f"{self.limits.max_loop_bytes:,}: raise it with run_limits(max_loop_bytes=...)"
            )

    def _most(self) -> str:
        return (
            f"and the limit is {self.limits.max_iterations:,}: bound it with a smaller M, or raise the limit "
            "with run_limits(max_iterations=...)"
        )


_LOOKS_EVERY = 64
"""How many iterations pass between two looks at the clock."""

_SAYS_PACE = 5.0
"""Seconds after which a loop's pace is known."""

_OPEN_FOR_SURE = 1000
"""Iterations that no clock forbids a loop which only its condition ends."""

_limits: ContextVar[RunLimits] = ContextVar("limits", default=RunLimits())  # noqa: B039, it is frozen
_spent: ContextVar[Budget | None] = ContextVar("spent", default=None)


@contextlib.contextmanager
def run_limits(
    *,
    max_iterations: int | None = None,
    max_open_iterations: int | None = None,
    max_loop_bytes: int | None = None,
    max_open_seconds: float | None = None,
    max_seconds: float | None = None,
) -> Iterator[RunLimits]:
    """Other limits for the loops that run inside the `with` block, on this thread, in any engine.

        with run_limits(max_iterations=10_000_000):
            session.run(inputs)

    Args:
        max_iterations: of a Loop or Scan, those of loops inside included; 2^20 where nothing is said.
        max_open_iterations: of a Loop that only its condition ends; 2^17 where nothing is said.
        max_loop_bytes: of a loop's states and collected outputs; 4 GiB where nothing is said.
        max_open_seconds: of a Loop that only its condition ends, after 1,000 iterations; 10 where nothing is
            said.
        max_seconds: of any other; 120 where nothing is said.

    Raises:
        ConfigError: a bound is below 1.
    """
    asked: dict[str, Any] = {
        "max_iterations": max_iterations,
        "max_open_iterations": max_open_iterations,
        "max_loop_bytes": max_loop_bytes,
        "max_open_seconds": max_open_seconds,
        "max_seconds": max_seconds,
    }
    new = replace(_limits.get(), **{name: value for name, value in asked.items() if value is not None})
    token = _limits.set(new)
    try:
        yield new
    finally:
        _limits.reset(token)


@contextlib.contextmanager
def budget() -> Iterator[Budget]:
    """The budget of a loop: that of the loop around it where there is one."""
    around = _spent.get()
    if around is not None:
        yield around
        return
    mine = Budget(_limits.get())
    token = _spent.set(mine)
    try:
        yield mine
    finally:
        _spent.reset(token)
