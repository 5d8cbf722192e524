"""How long loops may go on, and what they may hold, before a run of them is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import final

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

    Raises:
        ConfigError: a bound is below 1.
    """

    max_iterations: int = 1 << 20
    max_open_iterations: int = 1 << 17
    max_loop_bytes: int = 1 << 32

    def __post_init__(self) -> None:
        for name in ("max_iterations", "max_open_iterations", "max_loop_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give at least 1")


@final
@dataclass(slots=True)
class Budget:
    """What is left of the limits while a loop runs."""

    limits: RunLimits
    iterations: int = field(default=0)

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

    def go_on(self, done: int) -> None:
        """Refuse the next iteration of a loop that only its condition ends.

        Raises:
            LimitError: the limit has been reached.
        """
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


_limits: ContextVar[RunLimits] = ContextVar("limits", default=RunLimits())  # noqa: B039, it is frozen
_spent: ContextVar[Budget | None] = ContextVar("spent", default=None)


@contextlib.contextmanager
def run_limits(
    *,
    max_iterations: int | None = None,
    max_open_iterations: int | None = None,
    max_loop_bytes: int | None = None,
) -> Iterator[RunLimits]:
    """Other limits for the loops that run inside the `with` block, on this thread, in any engine.

        with run_limits(max_iterations=10_000_000):
            session.run(inputs)

    Args:
        max_iterations: of a Loop or Scan, those of loops inside included; 2^20 where nothing is said.
        max_open_iterations: of a Loop that only its condition ends; 2^17 where nothing is said.
        max_loop_bytes: of a loop's states and collected outputs; 4 GiB where nothing is said.

    Raises:
        ConfigError: a bound is below 1.
    """
    old = _limits.get()
    new = RunLimits(
        old.max_iterations if max_iterations is None else max_iterations,
        old.max_open_iterations if max_open_iterations is None else max_open_iterations,
        old.max_loop_bytes if max_loop_bytes is None else max_loop_bytes,
    )
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
