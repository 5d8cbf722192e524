"""All-reduce as a function that plans call by address."""

from __future__ import annotations

import ctypes
import time
from typing import Any, Protocol, final

import numpy as np

from onward.graph.foreign import Foreign
from onward.parallel.communicator import Communicator

__all__ = ["Calls", "PythonCalls"]

_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))
_KINDS: dict[int, np.dtype[Any]] = {1: np.dtype(np.float32), 11: np.dtype(np.float64)}


class Calls(Protocol):
    """An all-reduce that a plan calls, and what it counted.

    Attributes:
        functions: what is registered by a name.
        active: where it is False, both functions return at once and change nothing.
    """

    functions: Foreign
    active: bool

    def counted(self) -> tuple[float, float, int]:
        """Seconds that plans waited, seconds that sums were under way, and bytes that were summed."""


@final
class PythonCalls:
    """Calls a communicator's Python methods: for those that have no native functions.

    Args:
        communicator: it must not raise for want of a rank for ever; what it raises ends the run.
    """

    def __init__(self, communicator: Communicator) -> None:
        self.active = True
        self._communicator = communicator
        self._pending: dict[int, tuple[Any, float]] = {}
        self._waited = self._under_way = 0.0
        self._bytes = 0
        self._entries = _FUNCTION(self._start), _FUNCTION(self._wait)  # keeps the addresses alive
        start, wait = (ctypes.cast(entry, ctypes.c_void_p).value or 0 for entry in self._entries)
        self.functions = Foreign(start, wait)

    def counted(self) -> tuple[float, float, int]:
        """Seconds that plans waited, seconds that sums were under way, and bytes that were summed."""
        return self._waited, self._under_way, self._bytes

    def _start(self, args: Any) -> int:
        _, address, count, kind, tag = args[:5]
        if not self.active:
            return 0
        dtype = _KINDS.get(kind)
        if dtype is None:
            return -3
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        self._bytes += count * dtype.itemsize
        try:
            pending = self._communicator.all_reduce_start(np.frombuffer(memory, dtype))
        except Exception:  # noqa: BLE001 - nothing may be raised into native code
            return -1
        self._pending[tag] = pending, time.perf_counter()
        return 0

    def _wait(self, args: Any) -> int:
        if not self.active:
            return 0
        pending, started = self._pending.pop(args[4])
        before = time.perf_counter()
        try:
            self._communicator.all_reduce_wait(pending)
        except Exception:  # noqa: BLE001 - nothing may be raised into native code
            return -1
        now = time.perf_counter()
        self._waited += now - before
        self._under_way += now - started
        return 0
