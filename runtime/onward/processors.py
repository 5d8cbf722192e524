"""How many processors this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["bound_cores", "quota", "usable_cores"]


def usable_cores() -> int:
    """How many threads at work the process may have: its processors, and what its container may take of them.

    A part of a processor does not count: a team waits at each barrier for the thread that the kernel halts.
    """
    return max(1, math.floor(min(bound_cores(), quota())))


def bound_cores() -> int:
    """The processors that the process is bound to, whatever it may take of their time."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Processors that control groups grant the process (`docker run --cpus`, limits of pods); inf: all.

    Source: `cpu.max` of control groups 2, `cpu.cfs_quota_us` and `cpu.cfs_period_us` of control groups 1, in
    Linux's Documentation/admin-guide/cgroup-v2.rst and Documentation/scheduler/sched-bwc.rst.

    Args:
        groups: where their file systems are.
        own: the groups that the process is in.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return math.inf
    granted = math.inf
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for folder in _upwards(groups / controllers, path):
            limit, _, period = _text(folder / "cpu.max").partition(" ")
            if not limit:
                limit, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
            if limit.isdigit() and period.isdigit() and int(limit) and int(period):
                granted = min(granted, int(limit) / int(period))
    return granted


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """A group's folder and those above it; a container may see only the last of them."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:length])


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
