"""The thread team: runs an array of native steps on a fixed number of threads.

A step is a kernel of the ABI `void (i64* args, i64 thread, i64 threads)`. Each worker is a Python thread that
enters a compiled loop once, with the GIL released, and stays there until the team is closed. Between steps an
atomic barrier spins briefly and then gives the core away. Between runs a worker spins for a bounded time, so
that the next run of a training loop finds it awake, and then sleeps on a condition variable.

One run at a time uses a team; calls from several Python threads queue. Different teams are independent.

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

from onward.compile.codegen.builder import Function, Module, Value
from onward.compile.codegen.target import Target, host_target
from onward.errors import ConfigError

__all__ = ["ALONE", "FREE", "Step", "Steps", "Team"]

ALONE = 1
"""Step flag: run by thread 0 only, as `kernel(args, 0, 1)`; the others wait for it."""

FREE = 2
"""Step flag: no barrier after this step. The next step must not read what another thread writes in it."""

MAX_THREADS = 256

# The control block: 64-bit slots. Slots that different threads write stand on cache lines of their own.
_GENERATION = 0  # raised once a run; workers wait for it
_STEPS = 1  # address of the step array of the run
_COUNT = 2  # its length
_QUIT = 3
_THREADS = 4
_SYSTEM = 5  # addresses of the operating system's functions, in the order of _system()
_YIELD, _NAP, _LOCK, _UNLOCK, _WAIT, _BROADCAST = range(_SYSTEM, _SYSTEM + 6)
_AWAKE_BARRIER = 11  # looks at the epoch before a thread gives its core away
_AWAKE_PARK = 12  # looks at the generation before a worker goes to sleep
_ARRIVED = 16  # barrier: threads that have arrived
_EPOCH = 32  # barrier: raised when all have
_STOP = 33  # written by the last to arrive only, as others may be slow to read it: leave the run
_PENDING = 48  # asked for by a step: leave the run after this step
_PARKED = 64  # workers asleep, or about to be
_MUTEX = 80  # 128 bytes of storage each for the platform's lock and condition variable
_CONDITION = 96
_SLOTS = 112

_BARRIER_SECONDS = 20e-6
"""How long a thread spins in a barrier before it gives the core away."""

_YIELDS = 4700
"""How often it then gives the core away before naps of 50 µs."""

_PARK_SECONDS = 200e-6
"""How long a worker spins between runs before it sleeps: longer than Python takes between steps, as waking
a thread takes tens of microseconds."""


@dataclass(frozen=True)
class Step:
    """One kernel call: entry address, address of its argument block (kept alive by the caller), flags."""

    kernel: int
    args: int
    flags: int = 0


class Steps:
    """An array of steps in native memory, ready for `Team.run`.

    `steps` may hold `Step`s and Python callables without arguments; a callable runs on the calling thread,
    with the GIL, while the others wait. An exception in it ends the run after that step and is raised by
    `Team.run`.
    """

    def __init__(self, steps: Sequence[Step | Callable[[], object]]) -> None:
        self._keep: list[Any] = []
        table = np.zeros((len(steps), 3), np.int64)
        for row, step in zip(table, steps, strict=True):
            native = step if isinstance(step, Step) else self._callback(step)
            row[:] = native.kernel, native.args, native.flags
        if len(steps):
            table[-1, 2] &= ~FREE
        self.table: npt.NDArray[np.int64] = table

    def __len__(self) -> int:
        return len(self.table)

    def _callback(self, call: Callable[[], object]) -> Step:
        def run(args: int, thread: int, threads: int) -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - it must not unwind through native code
                _running.errors.append(error)
                _running.control[_PENDING] = 1

        native = _KERNEL(run)
        self._keep.append(native)
        return Step(_address(native), 0, ALONE)


class _Running(threading.local):
    """The run that the current thread is thread 0 of: where a Python step leaves its exception."""

    control: npt.NDArray[np.int64]
    errors: list[BaseException]


_running = _Running()


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

        Raises what a Python step raised. Raises `ConfigError` on a closed team.
        """
        with self._lock:
            if self._closed:
                raise ConfigError("the thread team is closed: open a new session")
            if self._process != os.getpid():
                self._start()
            if len(steps) == 0:
                return
            errors: list[BaseException] = []
            outer = dict(vars(_running))
            _running.control, _running.errors = self._control, errors
            try:
                _program().run(self._address, steps.table.ctypes.data, len(steps))
            finally:
                vars(_running).update(outer)
            if errors:
                raise errors[0]

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
        memory = np.zeros(_SLOTS + 16, np.int64)
        offset = -memory.ctypes.data % 128 // 8
        self._control = control = memory[offset : offset + _SLOTS]
        self._address = address = control.ctypes.data
        control[_THREADS] = self.threads
        control[_SYSTEM : _SYSTEM + 6] = _system(address + 8 * _MUTEX, address + 8 * _CONDITION)
        program = _program()
        control[_AWAKE_BARRIER] = max(1, int(_BARRIER_SECONDS / program.look))
        control[_AWAKE_PARK] = max(1, int(_PARK_SECONDS / program.look))
        workers = [
            threading.Thread(
                target=_work, args=(program, control, thread), name=f"onward-team-{thread}", daemon=True
            )
            for thread in range(1, self.threads)
        ]
        for worker in workers:
            worker.start()
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
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


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
    """The compiled entry points; ctypes releases the GIL around each call."""

    run: Callable[[int, int, int], None]  # control block, step array, number of steps
    work: Callable[[int, int, int], None]  # control block, thread, unused
    quit: Callable[[int, int, int], None]  # control block, unused, unused
    look: float  # seconds of one look at a value that others change


@functools.cache
def _program() -> _Program:
    from onward.compile.codegen.jit import default_jit

    target = host_target()
    modules = (_run(target), _work_loop(target), _quit(target), _looks(target))
    run, work, quit_, looks = (_KERNEL(address) for address in default_jit().addresses(modules))
    return _Program(run, work, quit_, _seconds_of(looks))


def _seconds_of(looks: Callable[[int, int, int], None]) -> float:
    """What a look takes here: a pause is 10 to 150 cycles long, by processor."""
    control, count, taken = np.zeros(_SLOTS, np.int64), 2000, []
    for _ in range(5):
        started = time.perf_counter()
        looks(control.ctypes.data, count, 0)
        taken.append(time.perf_counter() - started)
    return max(1e-9, min(taken) / count)


def _looks(target: Target) -> str:
    """Look at a value a number of times, as threads do that wait."""
    module = Module(target)
    f = module.entry()
    control, count, _ = f.arguments
    with f.range(0, count):
        _atomic_load(f, control, _GENERATION)
        _pause(f)
    f.ret()
    return module.text()


def _run(target: Target) -> str:
    module = Module(target)
    execute = _execute(module)
    f = module.entry()
    control, steps, count = f.arguments
    f.store(f.value(0), control, _PENDING)
    f.store(steps, control, _STEPS)
    f.store(count, control, _COUNT)
    _wake(f, control)
    f.invoke(execute, (control, f.value(0)))
    f.ret()
    return module.text()


def _work_loop(target: Target) -> str:
    module = Module(target)
    execute = _execute(module)
    f = module.entry()
    control, thread, _ = f.arguments
    seen, spins = f.local("i64"), f.local("i64")
    f.store(f.value(0), seen)
    with f.repeat() as end:
        last = f.load(seen, "i64")
        f.store(f.value(0), spins)
        with f.repeat() as leave:
            leave(f.compare("ne", _atomic_load(f, control, _GENERATION), last))
            count = f.load(spins, "i64") + 1
            f.store(count, spins)
            _pause(f)
            with f.when(f.compare("sge", count, f.load(control, "i64", _AWAKE_PARK))):
                _park(f, control, last)
        f.store(_atomic_load(f, control, _GENERATION), seen)
        end(f.compare("ne", f.load(control, "i64", _QUIT), 0))
        f.invoke(execute, (control, thread))
    f.ret()
    return module.text()


def _quit(target: Target) -> str:
    module = Module(target)
    f = module.entry()
    control = f.arguments[0]
    f.store(f.value(1), control, _QUIT)
    _wake(f, control)
    f.ret()
    return module.text()


def _execute(module: Module) -> Function:
    """The loop over the steps of a run, entered by every thread of the team."""
    f = module.function("execute", (("control", "ptr"), ("thread", "i64")))
    control, thread = f.arguments
    threads = f.load(control, "i64", _THREADS)
    count = f.load(control, "i64", _COUNT)
    steps = f.cast("inttoptr", f.load(control, "i64", _STEPS), "ptr")
    several = f.compare("sgt", threads, 1)
    index = f.local("i64")
    f.store(f.value(0), index)
    with f.repeat() as leave:
        i = f.load(index, "i64")
        leave(f.compare("sge", i, count))
        f.store(i + 1, index)
        kernel = f.cast("inttoptr", f.load(steps, "i64", i * 3), "ptr")
        args = f.load(steps, "i64", i * 3 + 1)
        flags = f.load(steps, "i64", i * 3 + 2)
        alone = f.compare("ne", f.binary("and", flags, ALONE), 0)
        mine = f.compare("eq", thread, 0)
        width = f.select(alone, f.value(1), threads)
        with f.when(f.binary("or", f.binary("xor", alone, f.value(1, "i1")), mine)):
            f.emit(f"call void {kernel.ref}(i64 {args.ref}, i64 {thread.ref}, i64 {width.ref})")
        meets = f.compare("eq", f.binary("and", flags, FREE), 0)
        with f.when(f.binary("and", several, meets)):
            _barrier(f, control, threads)
        single = f.binary("xor", several, f.value(1, "i1"))
        with f.when(single):
            f.store(f.load(control, "i64", _PENDING), control, _STOP)
        # Between barriers the slot still holds what the barrier before decided, or a run before this one.
        stop = f.compare("ne", f.load(control, "i64", _STOP), 0)
        leave(f.binary("and", stop, f.binary("or", single, meets)))
    f.ret()
    return f


def _barrier(f: Function, control: Value, threads: Value) -> None:
    epoch = _atomic_load(f, control, _EPOCH)
    arrived = _atomic_add(f, control, _ARRIVED, 1)
    last = f.compare("eq", arrived + 1, threads)
    with f.when(last):
        f.store(f.value(0), control, _ARRIVED)
        f.store(f.load(control, "i64", _PENDING), control, _STOP)
        _atomic_add(f, control, _EPOCH, 1)
    awake = f.load(control, "i64", _AWAKE_BARRIER)
    spins = f.local("i64")
    f.store(f.value(0), spins)
    with f.repeat() as leave:
        leave(f.compare("ne", _atomic_load(f, control, _EPOCH), epoch))
        count = f.load(spins, "i64") + 1
        f.store(count, spins)
        with f.when(f.compare("slt", count, awake)):
            _pause(f)
        with f.when(f.compare("sge", count, awake)):
            with f.when(f.compare("slt", count, awake + _YIELDS)):
                _system_call(f, control, _YIELD, "")
            with f.when(f.compare("sge", count, awake + _YIELDS)):
                _system_call(f, control, _NAP, "i32 1" if sys.platform == "win32" else "i32 50")


def _park(f: Function, control: Value, seen: Value) -> None:
    """Sleep until the generation differs from `seen`.

    The count of sleepers goes up before the generation is read, and `_wake` reads them in the other order, so
    one of the two always sees the other.
    """
    mutex, condition = f.at(control, _MUTEX, "i64"), f.at(control, _CONDITION, "i64")
    _atomic_add(f, control, _PARKED, 1)
    _system_call(f, control, _LOCK, f"ptr {mutex.ref}")
    with f.repeat() as leave:
        leave(f.compare("ne", _atomic_load(f, control, _GENERATION), seen))
        # The last two arguments are Windows' time limit and flags; nothing else looks at them.
        _system_call(f, control, _WAIT, f"ptr {condition.ref}, ptr {mutex.ref}, i32 -1, i32 0")
    _system_call(f, control, _UNLOCK, f"ptr {mutex.ref}")
    _atomic_add(f, control, _PARKED, -1)


def _wake(f: Function, control: Value) -> None:
    mutex, condition = f.at(control, _MUTEX, "i64"), f.at(control, _CONDITION, "i64")
    _atomic_add(f, control, _GENERATION, 1)
    with f.when(f.compare("ne", _atomic_load(f, control, _PARKED), 0)):
        _system_call(f, control, _LOCK, f"ptr {mutex.ref}")
        _system_call(f, control, _BROADCAST, f"ptr {condition.ref}")
        _system_call(f, control, _UNLOCK, f"ptr {mutex.ref}")


def _system_call(f: Function, control: Value, slot: int, arguments: str) -> None:
    function = f.load(control, "ptr", slot)
    f.emit(f"call void {function.ref}({arguments})")


def _atomic_load(f: Function, control: Value, slot: int) -> Value:
    address = f.at(control, slot, "i64")
    return f.instruction("i64", f"load atomic i64, ptr {address.ref} seq_cst, align 8")


def _atomic_add(f: Function, control: Value, slot: int, amount: int) -> Value:
    address = f.at(control, slot, "i64")
    return f.instruction("i64", f"atomicrmw add ptr {address.ref}, i64 {amount} seq_cst, align 8")


def _pause(f: Function) -> None:
    if f.module.target.x86:
        f.call("llvm.x86.sse2.pause", "void", ())
