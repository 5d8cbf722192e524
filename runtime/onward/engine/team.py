"""The thread team: runs an array of native steps on a fixed number of threads.

A step is a kernel of the ABI `void (i64* args, i64 part, i64 parts)`: a team of P threads cuts it into P
parts, which its threads claim as they come (`team_code` says how). Each worker is a Python thread that enters
a compiled loop once, with the GIL released, and stays there until the team is closed. A thread that waits
spins briefly and then gives the core away. Between runs a worker spins for a bounded time, so that the next
run of a training loop finds it awake, and then sleeps on a condition variable.

One run at a time uses a team; calls from several Python threads queue. Different teams are independent. The
same steps give the same bits whether all threads of a team run them or one alone.

A process made by `os.fork` has none of the threads: a team used in a child starts new ones there. A fork
while a run is in progress in another thread is safe, as the child's copy of the team starts afresh.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onward.compile.codegen.target import host_target
from onward.engine import team_code
from onward.engine.pace import Pace
from onward.engine.team_code import ALONE, FOREIGN, NO_BARRIER, Code
from onward.errors import ConfigError, LimitError, OnwardError

__all__ = ["ALONE", "FOREIGN", "NO_BARRIER", "Step", "Steps", "Team"]

MAX_THREADS = 256

_BARRIER_SECONDS = 20e-6
"""How long a thread spins in a barrier before it gives the core away."""

_PARK_SECONDS = 200e-6
"""How long a worker spins between runs before it sleeps: longer than Python takes between steps, as waking
a thread takes tens of microseconds."""


@dataclass(frozen=True)
class Step:
    """One call: entry address, address of its argument block (kept alive by the caller), flags.

    Flags:
        ALONE: run by thread 0 only, as `kernel(args, 0, 1)`; the others wait for it.
        NO_BARRIER: no barrier after this step. The next step must not read what another part writes in it.
        FOREIGN: a function `i64 (i64* args)`, called by one thread while the others go on. It is called again
            as long as it returns a positive number; 0 says that it is done, a negative number that it failed,
            which ends the run. With NO_BARRIER it starts something, and all that stands before it is done;
            without, all that stands after it waits for it.
    """

    kernel: int
    args: int
    flags: int = 0
    name: str = ""


class Steps:
    """An array of steps in native memory, ready to run; one run at a time may use it.

    `steps` may hold `Step`s and Python callables without arguments; a callable runs on the calling thread,
    with the GIL, while the others wait. An exception in it ends the run after that step and is raised by
    `Team.run`.
    """

    def __init__(self, steps: Sequence[Step | Callable[[], object]]) -> None:
        self._keep: list[Any] = []
        self._errors: list[BaseException] = []
        self._run = np.zeros(team_code.RUN_FIELDS, np.int64)
        native = [step if isinstance(step, Step) else self._callback(step) for step in steps]
        self._names = [step.name for step in native]
        rows = [(step.kernel, step.args, step.flags) for step in native]
        self.table: npt.NDArray[np.int64] = np.array(rows, np.int64).reshape(-1, 3)
        self._segments = np.array(_segments([step.flags for step in native]), np.int64).reshape(-1, 3)
        self._run[team_code.TABLE] = self.table.ctypes.data
        self._run[team_code.SEGMENTS] = self._segments.ctypes.data
        self._run[team_code.COUNT] = len(self._segments)
        self.pace = Pace()
        self.address = int(self._run.ctypes.data)
        self._description = self._run.data

    def __len__(self) -> int:
        return len(self.table)

    def run(self, parts: int) -> None:
        """Run all steps on the calling thread, as it would be cut for a team of `parts` threads.

        Raises what a Python step raised, `OnwardError` where a foreign function failed.
        """
        if len(self.table):
            self._run[team_code.WIDTH] = parts
            _program().solo(self.address, 0, 0)
            self.check()

    def check(self) -> None:
        """Raise what ended the last run early."""
        if not (status := self._description[team_code.STATUS]):
            return
        if status < 0:
            name = self._names[self._run[team_code.FAILED]]
            raise OnwardError(f"the function {name!r} that the plan calls failed with code {status}")
        error = self._errors.pop()
        self._errors.clear()
        raise error

    def _callback(self, call: Callable[[], object]) -> Step:
        errors, run = self._errors, self._run  # not self: what refers to itself is freed late

        def wrapped(args: int, thread: int, threads: int) -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - it must not unwind through native code
                errors.append(error)
                run[team_code.STATUS] = 1

        native = _KERNEL(wrapped)
        self._keep.append(native)
        return Step(_address(native), 0, ALONE)


def _segments(flags: Sequence[int]) -> list[tuple[int, int, int]]:
    """Steps that need no barrier between them: first, last, and who runs them."""
    found: list[tuple[int, int, int]] = []
    start = 0
    for i, flag in enumerate(flags):
        if flag & ALONE:
            if start < i:
                found.append((start, i, team_code.OPEN))
            found.append((i, i + 1, team_code.LEADER))
            start = i + 1
            continue
        if flag & FOREIGN and flag & NO_BARRIER and start < i:
            found.append((start, i, team_code.OPEN))
            start = i
        if not flag & NO_BARRIER:
            found.append((start, i + 1, team_code.OPEN))
            start = i + 1
    if start < len(flags):
        found.append((start, len(flags), team_code.OPEN))
    return found


class Team:
    """A fixed number of threads that run steps together; thread 0 is the caller's.

    `threads` is from 1 to 256. Use it as a context manager, or call `close`. Raises `ConfigError` for any
    other number of threads.
    """

    def __init__(self, threads: int) -> None:
        if not 1 <= threads <= MAX_THREADS:
            raise ConfigError(f"threads={threads}: choose a number from 1 to {MAX_THREADS}")
        self.threads = threads
        self._closed = False
        self._start()
        _teams.add(self)

    def run(self, steps: Steps) -> None:
        """Run all steps in order, each by all threads; returns when all are done.

        Raises what a Python step raised, `OnwardError` where a foreign function failed, and `ConfigError` on
        a closed team.
        """
        with self._lock:
            if self._closed:
                raise ConfigError("the thread team is closed: open a new session")
            if self._process != os.getpid():
                self._start()
            if self.threads == 1 or not len(steps):
                steps.run(1)
                return
            self._program.run(self._address, steps.address, 0)
            steps.check()

    def close(self) -> None:
        """End the worker threads; a second call does nothing."""
        with self._lock:
            self._closed = True
            self._finalizer()

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._program = program = _program()
        size = team_code.slots(self.threads)
        memory = np.zeros(size + 16, np.int64)
        offset = -memory.ctypes.data % 128 // 8
        control = memory[offset : offset + size]
        self._address = address = int(control.ctypes.data)
        control[team_code.EPOCH] = team_code.IDLE
        control[team_code.PARTS] = self.threads
        mutex, condition = address + 8 * team_code.MUTEX, address + 8 * team_code.CONDITION
        control[team_code.SYSTEM : team_code.SYSTEM + 6] = _system(mutex, condition)
        control[team_code.LOOKS_BARRIER] = max(1, int(_BARRIER_SECONDS / program.look))
        control[team_code.LOOKS_PARK] = max(1, int(_PARK_SECONDS / program.look))
        workers = [
            threading.Thread(
                target=_work, args=(program, control, thread), name=f"onward-team-{thread}", daemon=True
            )
            for thread in range(1, self.threads)
        ]
        for started, worker in enumerate(workers):
            try:
                worker.start()
            except RuntimeError as error:
                _finish(program, control, workers[:started], self._process)
                raise LimitError(
                    f"the system starts no thread {started + 2} of {self.threads}: choose fewer threads, "
                    "or raise the limits of the process (ulimit -u, ulimit -v) or of its container"
                ) from error
        self._finalizer = weakref.finalize(self, _finish, program, control, workers, self._process)


def _work(program: _Program, control: npt.NDArray[np.int64], thread: int) -> None:
    program.work(control.ctypes.data, thread, 0)


def _finish(
    program: _Program, control: npt.NDArray[np.int64], workers: list[threading.Thread], process: int
) -> None:
    if process != os.getpid():
        return
    program.quit(control.ctypes.data, 0, 0)
    for worker in workers:
        if worker is not threading.current_thread():
            worker.join()


_teams: weakref.WeakSet[Team] = weakref.WeakSet()


def _after_fork() -> None:
    # A lock that another thread held at the time of the fork would stay locked in the child for ever.
    for team in _teams:
        team._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def _address(function: Any) -> int:
    # `ctypes.cast` would make the function refer to itself, and so keep what it refers to until a collection
    return ctypes.c_int64.from_address(ctypes.addressof(function)).value


def _system(mutex: int, condition: int) -> tuple[int, ...]:
    """Make a lock and a condition variable in given storage; gives the addresses of the functions on them."""
    if sys.platform == "win32":
        library = ctypes.WinDLL("kernel32")
        library.InitializeSRWLock(ctypes.c_void_p(mutex))
        library.InitializeConditionVariable(ctypes.c_void_p(condition))
        names = (
            "SwitchToThread",
            "Sleep",
            "AcquireSRWLockExclusive",
            "ReleaseSRWLockExclusive",
            "SleepConditionVariableSRW",
            "WakeAllConditionVariable",
        )
    else:
        library = ctypes.CDLL(None)
        library.pthread_mutex_init(ctypes.c_void_p(mutex), None)
        library.pthread_cond_init(ctypes.c_void_p(condition), None)
        names = (
            "sched_yield",
            "usleep",
            "pthread_mutex_lock",
            "pthread_mutex_unlock",
            "pthread_cond_wait",
            "pthread_cond_broadcast",
        )
    return tuple(_address(getattr(library, name)) for name in names)


@dataclass(frozen=True)
class _Program:
    """The compiled entry points, see `Code`; ctypes releases the GIL around each call."""

    run: Callable[[int, int, int], None]
    work: Callable[[int, int, int], None]
    quit: Callable[[int, int, int], None]
    solo: Callable[[int, int, int], None]
    look: float
    """Seconds of one look at a value that others change."""


@functools.cache
def _program() -> _Program:
    return _compiled(team_code.code(host_target()))


def _compiled(code: Code) -> _Program:
    from onward.compile.codegen.jit import default_jit

    addresses = default_jit().addresses((code.run, code.work, code.quit, code.solo, code.looks))
    run, work, quit_, solo, looks = (_KERNEL(address) for address in addresses)
    return _Program(run, work, quit_, solo, _seconds_of(looks))


def _seconds_of(looks: Callable[[int, int, int], None]) -> float:
    """What a look takes here: a pause is 10 to 150 cycles long, by processor."""
    control, count, taken = np.zeros(team_code.slots(1), np.int64), 2000, []
    for _ in range(5):
        started = time.perf_counter()
        looks(control.ctypes.data, count, 0)
        taken.append(time.perf_counter() - started)
    return max(1e-9, min(taken) / count)
