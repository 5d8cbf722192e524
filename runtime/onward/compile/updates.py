"""Batched updates: many small parameters in one call, as each alone costs more to start than to compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from onward.compile.codegen.target import Target
from onward.compile.items import Call, Item, Slot
from onward.compile.kernels.batched_update import batched_update, row_slots
from onward.compile.kernels.element import Element
from onward.compile.tensors import Buffer, Place

__all__ = ["joined"]


def joined(items: Sequence[Item], target: Target) -> tuple[Item, ...]:
    """The calls with equal element-wise passes over small tensors of state put together.

    Each pass waits for others like it until something reads what it writes, or writes what it touches.
    """
    done: list[Item] = []
    waiting: dict[Element, _Waiting] = {}
    for item in items:
        for spec in [s for s, held in waiting.items() if held.clashes(item)]:
            done.append(_together(spec, waiting.pop(spec).calls, target))
        if isinstance(item, Call) and item.element is not None and _may_wait(item, item.element, target):
            waiting.setdefault(item.element, _Waiting()).add(item)
        else:
            done.append(item)
    return (*done, *(_together(spec, held.calls, target) for spec, held in waiting.items()))


@final
class _Waiting:
    """Calls that may be done later, and the memory that they touch."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._written: set[Buffer] = set()
        self._touched: set[Buffer] = set()

    def add(self, call: Call) -> None:
        """Let one more call wait."""
        self.calls.append(call)
        self._written.update(call.writes)
        self._touched.update(call.reads, call.writes)

    def clashes(self, item: Item) -> bool:
        """Whether an item has to come after the calls."""
        return not (self._touched.isdisjoint(item.writes) and self._written.isdisjoint(item.reads))


def _may_wait(call: Call, element: Element, target: Target) -> bool:
    """Whether a call updates a small tensor of state."""
    small = call.batch * target.typed(element.dtype).nbytes <= target.tuning.update_small
    return small and all(b.place is Place.FIXED for b in call.writes)


def _together(spec: Element, calls: Sequence[Call], target: Target) -> Call:
    if len(calls) == 1:
        return calls[0]
    slots: dict[str, Slot] = {"rows": len(calls)}
    end = 0
    for row, call in enumerate(calls):
        end += call.batch
        for name in row_slots(spec, row):
            kind = name.split()[0]
            slots[name] = end if kind == "end" else call.slots[kind]
    label = ", ".join(call.label for call in calls)
    return Call(batched_update(spec, len(calls), target), slots, label, end)
