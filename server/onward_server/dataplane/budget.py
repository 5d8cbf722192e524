"""What cross-checks that nobody waits for may take of the machine, shared among versions of models."""

from __future__ import annotations

import contextlib
import time
import types
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

__all__ = ["Account", "Budget", "Meter", "metered"]

_SAVED_SECONDS = 1.0
_ACTIVE_SECONDS = 1.0
_SMOOTHING = 0.2
_READ_SECONDS = 0.05
_REFUSED_SECONDS = 0.1
_SCHEDULED = Path("/proc/thread-self/schedstat")
_Result = TypeVar("_Result")


@final
class Budget:
    """Of all versions.

    Args:
        cores: that the server may use.
        clock: seconds; None: those in which nothing else on the machine kept this thread waiting.
    """

    def __init__(self, cores: int, clock: Callable[[], float] | None = None) -> None:
        self.cores = cores
        self.clock = clock = clock or _Granted()
        self._asked: dict[Account, float] = {}
        self._counted = clock()

    def account(self, share: float) -> Account:
        """That of one version, which may spend `share` of a second each second if it is alone."""
        return Account(self, share)

    def active(self, account: Account, now: float) -> int:
        """How many versions asked lately, now that this one does."""
        self._asked[account] = now
        if now - self._counted > _ACTIVE_SECONDS:
            self._counted = now
            self._asked = {a: then for a, then in self._asked.items() if now - then <= _ACTIVE_SECONDS}
        return len(self._asked)


@final
class _Granted:
    """A clock that stands still while the thread would run and the kernel lets others run.

    Source: `Documentation/scheduler/sched-stats.rst` of Linux, `/proc/<pid>/schedstat`.
    """

    def __init__(self) -> None:
        self._waited = 0.0
        self._read = -_READ_SECONDS

    def __call__(self) -> float:
        now = time.monotonic()
        if now - self._read >= _READ_SECONDS:
            self._read = now
            with contextlib.suppress(OSError, ValueError, IndexError):
                self._waited = int(_SCHEDULED.read_text().split()[1]) / 1e9
        return now - self._waited


@final
class Account:
    """Seconds that one version may spend on checks: they come in steadily and are saved for one second.

    A check costs the server's own seconds, and those of the witness divided by the cores.

    Args:
        budget: shared with other versions.
        share: of each second.
    """

    def __init__(self, budget: Budget, share: float) -> None:
        self._budget = budget
        self._share = share
        self._left = share * _SAVED_SECONDS
        self._then = budget.clock()
        self._mean = 0.0
        self._first = True
        self._refuses_until = self._then

    def allows(self) -> bool:
        """Whether one more check may be made, at what earlier ones took. The first one may."""
        now = self._budget.clock()
        if now < self._refuses_until:
            return False
        income = max(now - self._then, 0.0) * self._share / self._budget.active(self, now)
        self._left = min(self._left + income, self._share * _SAVED_SECONDS)
        self._then = now
        if self._left <= 0 and not self._first:
            # asked at every request until then, so this has to be cheap
            self._refuses_until = now + min(-self._left / self._share, _REFUSED_SECONDS)
            return False
        self._first = False
        self._left -= self._mean
        return True

    def spent(self, checks: int, own: float, witness: float) -> None:
        """Settle checks that were allowed.

        Args:
            checks: how many.
            own: seconds of the server's process.
            witness: processor seconds of the witness.
        """
        cost = own + witness / self._budget.cores
        self._left += checks * self._mean - cost
        self._mean += (cost / checks - self._mean) * (_SMOOTHING if self._mean else 1.0)


@final
@dataclass(slots=True)
class Meter:
    """Seconds of processor time."""

    seconds: float = 0.0


@types.coroutine
def metered(work: Coroutine[Any, Any, _Result], meter: Meter) -> Generator[Any, Any, _Result]:
    """Await `work`, and count the processor time of its own steps, not of what runs between them."""
    given: Any = None
    raised: BaseException | None = None
    while True:
        start = time.thread_time()
        try:
            waits = work.send(given) if raised is None else work.throw(raised)
        except StopIteration as end:
            result: _Result = end.value
            return result
        finally:
            meter.seconds += time.thread_time() - start
        given = raised = None
        try:
            given = yield waits
        except BaseException as error:  # noqa: BLE001 - it is for `work`
            raised = error
