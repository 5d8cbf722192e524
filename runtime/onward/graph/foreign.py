"""Native functions of others that graphs call by name: to start something, and to wait for it."""

from __future__ import annotations

import ctypes
import threading
import time
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError, OnwardError
from onward.graph.types import Array

__all__ = ["Foreign", "call_foreign", "foreign", "forget_foreign", "keep_forever", "register_foreign"]

_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
_PAUSE = 5e-5


@final
@dataclass(frozen=True)
class Foreign:
    """Native functions of another library that start something and wait for it.

    Attributes:
        start, wait: addresses of functions `int64_t (int64_t *args)`. `args[0]` is `context`; the arguments
            of the call follow: addresses, and numbers. For `StartCall` and `WaitCall` of a graph these are
            the block's address, the number of its elements, the number that ONNX has for their type (1 is
            float32, 11 float64), and the call's `tag`. Some thread of the team calls them, not always
            the same one, without the GIL; in one run never two at once. 0 says that the call has done its
            work; a positive number asks to be called again; a negative one ends the run with an error.
        context: any 64-bit number, such as the address of what the functions work on.
    """

    start: int
    wait: int
    context: int = 0


_known: dict[str, Foreign] = {}
_lock = threading.Lock()


def register_foreign(name: str, functions: Foreign) -> None:
    """Let plans call functions by a name. The caller keeps the functions, and what they work on, alive.

    Raises:
        ConfigError: the name stands for others already.
    """
    with _lock:
        if _known.setdefault(name, functions) != functions:
            raise ConfigError(f"the name {name!r} stands for other functions: forget them first")


def forget_foreign(name: str) -> None:
    """Let a name stand for nothing. Sessions that call it must have been closed."""
    with _lock:
        _known.pop(name, None)


def foreign(name: str) -> Foreign:
    """What a name stands for.

    Raises:
        ConfigError: nothing.
    """
    with _lock:
        if (found := _known.get(name)) is None:
            raise ConfigError(f"the plan calls {name!r}: register a function of that name first")
        return found


_kept: list[object] = []


def keep_forever(memory: object) -> None:
    """Never free what a function may still be working on: a run failed between its start and its wait."""
    _kept.append(memory)


def call_foreign(name: str, block: Array, tag: int) -> None:
    """Start a function on a block and wait until it has ended.

    Args:
        name: of the function.
        block: without gaps; it is changed.
        tag: what tells calls of one function apart.

    Raises:
        ConfigError: no function has this name.
        OnwardError: the function failed.
    """
    found = foreign(name)
    kind = int(ir.DataType.from_numpy(block.dtype))
    arguments = np.array([found.context, block.ctypes.data, block.size, kind, tag], np.int64)
    for address in (found.start, found.wait):
        function = _FUNCTION(address)
        while (status := function(arguments.ctypes.data)) > 0:
            time.sleep(_PAUSE)
        if status < 0:
            keep_forever(block)
            raise OnwardError(f"{name}: the function failed with {status}")
