"""What ranks exchange, as functions that plans call by address."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, final

import numpy as np

from onward.graph import Array
from onward.graph.foreign import Foreign
from onward.parallel.communicator import Communicator

__all__ = ["Calls", "Operation", "PythonCalls", "sent_share"]

_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))
Operation = Literal["all-reduce", "all-to-all", "all-gather"]
"""All-to-all blocks have two halves, what is sent and what is received."""

_KINDS: dict[int, np.dtype[Any]] = {1: np.dtype(np.float32), 11: np.dtype(np.float64)}
_LOOK = 0.01
"""Seconds for which a plan waits at once: other threads of a team may have an error to tell."""
_MOVED = {**_KINDS, 16: np.dtype(np.uint16)}
"""bfloat16 may be moved; it is never added up by a communicator."""


def sent_share(operation: Operation, ranks: int) -> float:
    """What part of a block's bytes each rank sends, at the least."""
    return (1 - 1 / ranks) * {"all-reduce": 2.0, "all-to-all": 0.5, "all-gather": 1.0}[operation]


class Calls(Protocol):
    """An operation that a plan calls, and what it counted.

    Attributes:
        functions: what is registered by a name.
        active: where it is False, both functions return at once and change nothing.
    """

    functions: Foreign
    active: bool

    def waiting(self) -> tuple[float, float]:
        """Seconds for which a plan has been waiting just now, and the longest that one has waited before."""

    def counted(self) -> tuple[float, float, int]:
        """Seconds that plans waited, seconds that blocks were under way, and the bytes of all blocks."""


@final
class PythonCalls:
    """Calls a communicator's Python methods: for those that have no native functions.

    Args:
        communicator: it must not raise for want of a rank for ever; what it raises ends the run.
        operation: what is called.
        beside: let a thread do the calls while plans compute; the communicator is then this object's alone,
            and lets several threads call it.
    """

    def __init__(self, communicator: Communicator, operation: Operation, *, beside: bool = False) -> None:
        self.active = True
        self._operation: Operation = operation
        self._communicator = communicator
        self._pending: dict[int, tuple[Any, float]] = {}
        self._thread = ThreadPoolExecutor(1, "onward-exchange") if beside else None
        self._since = 0.0
        self._waited = self._under_way = self._longest = 0.0
        self._bytes = 0
        self._entries = _FUNCTION(self._start), _FUNCTION(self._wait)  # keeps the addresses alive
        start, wait = (ctypes.cast(entry, ctypes.c_void_p).value or 0 for entry in self._entries)
        self.functions = Foreign(start, wait)

    def waiting(self) -> tuple[float, float]:
        """Seconds for which a plan has been waiting just now, and the longest that one has waited before."""
        since = self._since
        return (time.perf_counter() - since if since else 0.0), self._longest

    def counted(self) -> tuple[float, float, int]:
        """Seconds that plans waited, seconds that blocks were under way, and the bytes of all blocks."""
        return self._waited, self._under_way, self._bytes

    def _start(self, args: Any) -> int:
        _, address, count, kind, tag = args[:5]
        if not self.active:
            return 0
        dtype = (_KINDS if self._operation == "all-reduce" else _MOVED).get(kind)
        if dtype is None:
            return -3
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        self._bytes += count * dtype.itemsize
        block, now = np.frombuffer(memory, dtype), time.perf_counter()
        try:
            pending = self._begin(block) if self._thread is None else self._thread.submit(self._whole, block)
        except Exception:  # noqa: BLE001 - nothing may be raised into native code
            return -1
        self._pending[tag] = pending, now
        return 0

    def _whole(self, block: Array) -> float:
        """Start, and wait; when it ended."""
        self._communicator.all_reduce_wait(self._begin(block))
        return time.perf_counter()

    def _begin(self, block: Array) -> Any:
        communicator: Any = self._communicator
        if self._operation == "all-reduce":
            return communicator.all_reduce_start(block)
        if self._operation == "all-to-all":
            return communicator.all_to_all_start(*np.split(block, 2))
        return communicator.all_gather_start(block)

    def _wait(self, args: Any) -> int:
        if not self.active:
            return 0
        pending, started = self._pending[args[4]]
        now = time.perf_counter()
        self._since = self._since or now
        try:
            if self._thread is None:
                self._communicator.all_reduce_wait(pending)
                ended = time.perf_counter()
            else:
                ended = pending.result(_LOOK)
        except TimeoutError:
            if not pending.done():
                return 1
            return -1
        except Exception:  # noqa: BLE001 - nothing may be raised into native code
            return -1
        del self._pending[args[4]]
        took = time.perf_counter() - self._since
        self._waited, self._longest = self._waited + took, max(self._longest, took)
        self._under_way += ended - started
        self._since = 0.0
        return 0
