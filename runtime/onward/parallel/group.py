"""The ranks that train one model: what they agree on, and what their plans call."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import pickle
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, final

import numpy as np

from onward.errors import ConfigError, DataError, OnwardError
from onward.graph import Array
from onward.graph.foreign import forget_foreign, register_foreign
from onward.parallel.calls import Calls, Operation, PythonCalls, sent_share
from onward.parallel.communicator import Communicator
from onward.parallel.mpi import launched, world

__all__ = ["Group", "Times", "ranks_of"]

_T = TypeVar("_T")


@final
@dataclass(frozen=True, slots=True)
class Times:
    """Where a rank's time went.

    Attributes:
        steps: seconds in training steps.
        waiting: of these, seconds in which the step could not go on for want of sums.
        communicating: seconds that sums were under way, those under way together each counted.
        exchanged: bytes that the rank sent, if its library sends no more than it has to: 2 (R - 1) / R of
            what R ranks add up.
        optimizer_bytes: the optimizer's state that is here.
        peak_bytes: the most memory that the process ever held.
        host: the name of the machine.
        process: the number of the process there.
    """

    steps: float
    waiting: float
    communicating: float
    exchanged: int
    optimizer_bytes: int = 0
    peak_bytes: int = 0
    host: str = ""
    process: int = 0


@final
class Group:
    """Ranks that train one model.

    Args:
        communicator: between them.

    Attributes:
        function: the name by which plans call an all-reduce in every step.
        gradients: the name by which they call that of gradients, which is left out where `exchanging` is
            False.
        pieces: the names of an all-to-all and an all-gather for gradients, left out as well; asked for by all
            ranks together.
    """

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator
        self.rank, self.size = communicator.rank, communicator.size
        self._calls: dict[str, tuple[Operation, Calls]] = {}
        self._before = 0.0, 0.0, 0.0
        self.function = self._called("all-reduce", "all-reduce")
        self.gradients = self._called("all-reduce-gradients", "all-reduce")

    @functools.cached_property
    def pieces(self) -> tuple[str, str]:
        """The names of an all-to-all and an all-gather.

        Raises:
            ConfigError: the communicator has none.
        """
        needed = ("all_to_all_start", "all_gather_start")
        if lacking := [name for name in needed if not hasattr(self.communicator, name)]:
            raise ConfigError(
                f"{type(self.communicator).__name__} has no method {lacking[0]}: gradients can only be "
                "summed whole, as float32, with the optimizer's state on every rank"
            )
        return self._called("all-to-all", "all-to-all"), self._called("all-gather", "all-gather")

    def close(self) -> None:
        """Let the names stand for nothing."""
        for name in self._calls:
            forget_foreign(name)

    @property
    def exchanging(self) -> bool:
        """Whether the next steps exchange gradients."""
        return self._calls[self.gradients][1].active

    @exchanging.setter
    def exchanging(self, value: bool) -> None:
        for name, (_, calls) in self._calls.items():
            calls.active = value or name == self.function

    def begin(self) -> None:
        """Let `times` count from now on: another run may have been before."""
        self._before = self._counted()

    def times(self, steps: float, optimizer_bytes: int = 0) -> Times:
        """What was counted since `begin`, for so many seconds of steps and bytes of optimizer state."""
        waited, under_way, sent = (
            now - before for now, before in zip(self._counted(), self._before, strict=True)
        )
        place = socket.gethostname(), os.getpid()
        return Times(steps, waited, under_way, round(sent), optimizer_bytes, peak_bytes(), *place)

    def _counted(self) -> tuple[float, float, float]:
        """Seconds of waiting, seconds under way, and bytes sent, of all operations."""
        waited = under_way = sent = 0.0
        for operation, calls in self._calls.values():
            waits, busy, nbytes = calls.counted()
            waited, under_way = waited + waits, under_way + busy
            sent += nbytes * sent_share(operation, self.size)
        return waited, under_way, sent

    def _called(self, name: str, operation: Operation) -> str:
        """Register an operation; its name."""
        make = getattr(self.communicator, "calls", None)
        calls = PythonCalls(self.communicator, operation) if make is None else make(operation)
        found = _register(name, calls.functions)
        self._calls[found] = operation, calls
        return found

    def sum(self, array: Array) -> Array:
        """The sum of an array of all ranks; float64 or int64 where the array is of another type."""
        kind = np.asarray(array).dtype
        wide = np.float64 if kind.kind == "f" else np.int64
        total = np.array(array, dtype=wide, order="C", ndmin=1)
        self.communicator.all_reduce_wait(self.communicator.all_reduce_start(total))
        return total.reshape(np.shape(array))

    def whole(self, part: Array, start: int, shape: Sequence[int]) -> Array:
        """An array of which each rank has some elements, without gaps and each once, to the bit.

        Args:
            part: this rank's, a vector.
            start: where they begin in the flat array.
            shape: of the whole.
        """
        bits = np.dtype(f"i{part.dtype.itemsize}")
        found = np.zeros(math.prod(shape), bits)
        found[start : start + part.size] = part.view(bits)
        return self.sum(found).astype(bits).view(part.dtype).reshape(shape)

    def any(self, value: bool) -> bool:
        """Whether it holds on some rank."""
        return bool(self.sum(np.array(int(value))) > 0)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order. Values are pickled."""
        return [self._spread(value, rank) for rank in range(self.size)]

    def read_files(self, files: Sequence[Path], read: Callable[[Path], Array]) -> Iterator[Array | DataError]:
        """What a function makes of each file, or that it refuses it: each rank reads its part of the files.

        All ranks have to go through all of it.

        Raises:
            ConfigError: they do not see the same files.
        """
        names = hashlib.sha256("\0".join(map(str, files)).encode()).hexdigest()
        self.check_same({"the files of the data": f"{len(files)} files, {names[:12]}"})
        for begin in range(0, len(files), _FILES * self.size):
            some = files[begin : begin + _FILES * self.size]
            first, last = len(some) * self.rank // self.size, len(some) * (self.rank + 1) // self.size
            for part in self.gather([_tried(read, file) for file in some[first:last]]):
                yield from part

    def from_first(self, function: Callable[[], _T]) -> _T:
        """What a function gives on rank 0, which alone calls it.

        Raises:
            OnwardError: what it raised there, on every rank.
        """
        outcome: tuple[bool, Any] = (True, None)
        if self.rank == 0:
            try:
                outcome = True, function()
            except OnwardError as error:
                outcome = False, _plain(error)
        with self._patiently():
            fine, value = self._spread(outcome)
        if not fine:
            raise value
        return value

    @contextlib.contextmanager
    def _patiently(self) -> Iterator[None]:
        """While rank 0 alone has work to do, the others wait for as long as it takes."""
        communicator: Any = self.communicator
        if not hasattr(communicator, "patient"):
            yield
            return
        communicator.patient = True
        try:
            yield
        finally:
            communicator.patient = False

    def _spread(self, value: Any, root: int = 0) -> Any:
        """A value of a rank. Its arrays are sent from where they are."""
        if self.rank == root:
            found: list[pickle.PickleBuffer] = []
            text = pickle.dumps(value, protocol=5, buffer_callback=found.append)
            blocks = [np.frombuffer(text, np.uint8), *(np.frombuffer(b.raw(), np.uint8) for b in found)]
        count = int(self.sum(np.array(len(blocks) if self.rank == root else 0)))
        sizes = np.array([b.size for b in blocks] if self.rank == root else [0] * count, np.int64)
        sizes = self.sum(sizes)
        if self.rank != root:
            blocks = [np.empty(size, np.uint8) for size in sizes]
        for block in blocks:
            if block.size:
                self.communicator.broadcast(block, root)
        return value if self.rank == root else pickle.loads(blocks[0].data, buffers=blocks[1:])

    def together(self, function: Callable[[], _T]) -> _T:
        """What a function gives on this rank, where it raises on none.

        Raises:
            OnwardError: what it raised on the first rank on which it did, on every rank.
        """
        error: OnwardError | None = None
        result: Any = None
        try:
            result = function()
        except OnwardError as raised:
            error = _plain(raised)
        if not self.any(error is not None):
            return result
        errors = self.gather(error)
        rank, first = next((r, e) for r, e in enumerate(errors) if e is not None)
        if all(e is not None and str(e) == str(first) for e in errors):
            raise first
        raise type(first)(f"rank {rank}: {first}")

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Refuse ranks that differ.

        Args:
            facts: by what each is called.

        Raises:
            ConfigError: names the first fact that differs, and the ranks.
        """
        everyone = self.gather(dict(facts))
        for key in dict.fromkeys(key for each in everyone for key in each):
            values = [each.get(key) for each in everyone]
            others = [rank for rank, value in enumerate(values) if value != values[0]]
            if others:
                named = ", ".join(map(str, others[:8])) + (" …" if len(others) > 8 else "")
                raise ConfigError(
                    f"ranks disagree on {key}: rank 0 has {values[0]!r}, rank{'s' * (len(others) > 1)} "
                    f"{named} {'have' if len(others) > 1 else 'has'} {values[others[0]]!r}; start all of "
                    "them with the same files, options and versions"
                )

    def share(self, array: Array) -> None:
        """Replace an array by that of rank 0."""
        self.communicator.broadcast(array)


_FILES = 64
"""Files that a rank reads before the ranks tell each other what they read."""


def peak_bytes() -> int:
    """The most memory that this process ever held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _tried(read: Callable[[Path], Array], file: Path) -> Array | DataError:
    try:
        return read(file)
    except DataError as error:
        return DataError(str(error))


def _plain(error: OnwardError) -> OnwardError:
    """An error that can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
        type(error)(str(error))
    except Exception:  # noqa: BLE001 - whatever its constructor does
        return OnwardError(str(error))
    return error


def _register(name: str, functions: Any) -> str:
    """Register under the first name that is free: plans are cached by it."""
    for number in range(1 << 16):
        tried = f"{name}.{number}" if number else name
        try:
            register_foreign(tried, functions)
        except ConfigError:
            continue
        return tried
    raise ConfigError("too many groups of ranks in one process: close some")


def _unmatched() -> str:
    """Why a library does not know of the ranks that its launcher started."""
    if "SLURM_PROCID" in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return (
            "srun offers its ranks another interface than the library speaks; `srun --mpi=list` names those "
            "that there are: --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH and Intel MPI"
        )
    return "mpirun is of another MPI library than the one that mpi4py found"


def ranks_of(parallel: Literal["auto", "mpi", "none"]) -> Group | None:
    """All ranks of the MPI program that this process is of; None where it is the only one.

    Args:
        parallel: "auto": where a launcher of MPI programs says that there are several.

    Raises:
        ConfigError: mpi4py or an MPI library is missing, or it is not the one that the launcher is of.
    """
    started = launched()
    if parallel == "none" or (parallel == "auto" and started is None):
        return None
    communicator = world()
    if communicator.size == 1:
        if started is not None:
            raise ConfigError(
                f"this process was started as rank {started[0]} of {started[1]}, but mpi4py's MPI library "
                f"knows of one rank only: {_unmatched()}"
            )
        return None
    return _world_group()


@functools.cache
def _world_group() -> Group:
    return Group(world())
