"""How a process gives way to the one that answers requests."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

__all__ = ["give_way"]

_GROUP = Path("/proc/self/autogroup")
_TRIES = 6
_PAUSE = 0.05


def give_way(nice: int) -> None:
    """Lower this process's priority by `nice`, as nice(1) has it.

    Where Linux shares the processor among sessions first (sched(7), "The autogroup feature"), a nice value
    counts within its session alone. So the process begins a session, and that is given the value too.
    """
    if not nice:
        return
    value = os.nice(nice)
    with contextlib.suppress(PermissionError):  # it leads one already
        os.setsid()
    for _ in range(_TRIES):
        try:
            _GROUP.write_text(str(value))
        except BlockingIOError:
            # the kernel takes one such request in a tenth of a second, of the whole machine
            time.sleep(_PAUSE)
        except OSError:
            return
        else:
            return
