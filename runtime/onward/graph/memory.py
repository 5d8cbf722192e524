"""How large a tensor may be: what is larger than the machine's memory is refused before it is allocated."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

__all__ = ["free_memory", "largest_tensor", "no_room", "too_large"]

_UNKNOWN = 1 << 36

_LARGE = 1 << 30

_CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@functools.cache
def largest_tensor() -> int:
    """The bytes that a tensor may have: the machine's memory, or what the process's container may use."""
    found = [_UNKNOWN]
    with contextlib.suppress(ValueError, OSError, AttributeError):
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(path).read_text()))
    return min(n for n in found if n > 0)


def too_large(nbytes: int) -> str | None:
    """Why a tensor of this size is refused; None where it is not."""
    if nbytes <= largest_tensor():
        return None
    return f"its result would take {nbytes:,} bytes, more than the machine has"


def free_memory() -> int:
    """The bytes that may be allocated now without another process being driven out; all where nobody says."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return largest_tensor()


def no_room(nbytes: int) -> str | None:
    """Why a result of this size is not begun; None where it is.

    Results below 1 GiB are left to the operating system.
    """
    reason = too_large(nbytes)
    if reason is not None or nbytes < _LARGE or nbytes <= free_memory():
        return reason
    return f"its result would take {nbytes:,} bytes, more than is free"
