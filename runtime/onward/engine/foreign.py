"""Native functions of others that plans call by name: to start something, and to wait for it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import final

from onward.errors import ConfigError

__all__ = ["Foreign", "foreign", "forget_foreign", "register_foreign"]


@final
@dataclass(frozen=True)
class Foreign:
    """Native functions of another library that start something and wait for it.

    Attributes:
        start, wait: addresses of functions `int64_t (int64_t *args)`. `args[0]` is `context`; the arguments
            of the plan's step follow: addresses, and numbers. Some thread of the team calls them, not always
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
