"""Barriers: where the threads of a plan wait for each other.

All threads run every call, each its own part. They wait behind a call unless the next one neither reads nor
writes what the calls since the last barrier write, nor writes what those read.
"""

from __future__ import annotations

from collections.abc import Sequence

from onward.compile.items import Call, Item
from onward.compile.tensors import Buffer

__all__ = ["barriers_before", "no_barriers"]


def no_barriers(items: Sequence[Item]) -> list[bool]:
    """For each item whether the next one may start before all threads are done with it."""
    found = [False] * len(items)
    read: set[Buffer] = set()
    written: set[Buffer] = set()
    for i, item in enumerate(items):
        native = isinstance(item, Call)
        clash = any(b in written for b in (*item.reads, *item.writes)) or any(b in read for b in item.writes)
        if i and native and not clash and isinstance(items[i - 1], Call):
            found[i - 1] = True
        else:
            read, written = set(), set()
        read.update(item.reads)
        written.update(item.writes)
    return found


def barriers_before(items: Sequence[Item]) -> list[int]:
    """How many barriers stand before each item: threads may be anywhere between two of them."""
    found, count = [], 0
    for no_barrier in no_barriers(items):
        found.append(count)
        count += not no_barrier
    return found
