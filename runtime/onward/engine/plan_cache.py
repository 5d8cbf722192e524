"""Plans by content hash, in memory and on disk: what was planned once is not lowered again."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from typing import final

from onward.compile.disk import DiskCache, cache_folder
from onward.compile.spec import PlanSpec
from onward.compile.spec_file import NotStorableError, read_plan, write_plan

__all__ = ["PlanCache", "default_plans"]

_LIMIT = 64 << 20
"""Bytes of the folder."""

_LARGEST = 8 << 20
"""Bytes of a plan that is kept on disk; larger ones hold large constants."""


@final
class PlanCache:
    """Plans by key.

    Safe to use from several threads, and from processes that share the folder. An entry that cannot be read,
    or that is another key's, reads as absent; the next `put` replaces it.

    Args:
        disk: where plans outlive the process; None: nowhere.
        count: plans kept in memory, the least recently used one goes first.
    """

    def __init__(self, disk: DiskCache | None = None, count: int = 32) -> None:
        self._disk = disk
        self._count = count
        self._plans: OrderedDict[str, PlanSpec] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> PlanSpec | None:
        """The plan, or None when absent."""
        with self._lock:
            if (plan := self._plans.get(key)) is not None:
                self._plans.move_to_end(key)
                return plan
        data = self._disk.get(key) if self._disk is not None else None
        if data is None or not data.startswith(head := _head(key)):
            return None
        try:
            plan = read_plan(data[len(head) :])
        except NotStorableError:
            return None
        self._keep(key, plan)
        return plan

    def put(self, key: str, plan: PlanSpec) -> None:
        """Store a plan; on disk only one that a file can hold."""
        self._keep(key, plan)
        if self._disk is None:
            return
        try:
            data = write_plan(plan)
        except NotStorableError:
            return
        if len(data) <= _LARGEST:
            self._disk.put(key, _head(key) + data)

    def _keep(self, key: str, plan: PlanSpec) -> None:
        with self._lock:
            self._plans[key] = plan
            self._plans.move_to_end(key)
            if len(self._plans) > self._count:
                self._plans.popitem(last=False)


def _head(key: str) -> bytes:
    return f"{key}\n".encode()


@functools.cache
def default_plans() -> PlanCache:
    """The process's plans, with the user's disk cache beside the kernels."""
    return PlanCache(DiskCache(cache_folder("plans"), _LIMIT))
