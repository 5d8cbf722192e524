"""Memory planning: packs buffers that do not live at the same time into one arena."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from onward.compile.barriers import barriers_before
from onward.compile.items import Item
from onward.compile.kernels.layout import Image
from onward.compile.tensors import Buffer, Place, Tensor

__all__ = ["Arena", "Lifetime", "lifetimes", "pack"]

_ALIGN = 64


@dataclass(frozen=True)
class Lifetime:
    """A buffer is needed from call `first` to call `last`, both included."""

    buffer: Buffer
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """Where each buffer is: byte offsets into one block of `nbytes`."""

    nbytes: int
    offsets: dict[Buffer, int]


def lifetimes(calls: Sequence[Item], prologue: Sequence[Item], outputs: Collection[Tensor]) -> list[Lifetime]:
    """How long each buffer of the arena is needed, counted in barriers.

    Args:
        calls: of a run.
        prologue: what runs before them, once for given weights.
        outputs: what is read after a run.
    """
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    end = len(calls)
    for i, item in zip(barriers_before(calls), calls, strict=True):
        for buffer in (*item.reads, *item.writes):
            if buffer.place is Place.ARENA:
                first.setdefault(buffer, i)
                last[buffer] = i
    for tensor in outputs:
        if tensor.buffer in first:
            last[tensor.buffer] = end
    for item in prologue:
        for buffer in (*item.reads, *item.writes):
            if buffer.place is Place.ARENA:
                first[buffer], last[buffer] = 0, end
    return [Lifetime(b, first[b], last[b]) for b in first]


def pack(lifetimes: Sequence[Lifetime]) -> Arena:
    """Give each buffer an offset, large ones first, at the lowest place that is free while it lives.

    Images with a border share memory only with those of equal geometry: kernels rely on the border's zeros.
    """
    offsets: dict[Buffer, int] = {}
    bordered: dict[tuple[Image, int], list[Lifetime]] = {}
    free: list[Lifetime] = []
    for life in lifetimes:
        if life.buffer.image is not None:
            bordered.setdefault((life.buffer.image, life.buffer.nbytes), []).append(life)
        else:
            free.append(life)
    end = 0
    placed: list[tuple[int, int, int, int]] = []
    for life in sorted(free, key=lambda item: (-item.buffer.nbytes, item.first)):
        size = -(-life.buffer.nbytes // _ALIGN) * _ALIGN
        start = 0
        for low, high, first, last in placed:
            if high > start and first <= life.last and life.first <= last:
                if low - start >= size:
                    break
                start = high
        offsets[life.buffer] = start
        bisect.insort(placed, (start, start + size, life.first, life.last))
        end = max(end, start + size)
    for same in bordered.values():
        end = _colour(same, end, offsets)
    return Arena(end, offsets)


def _colour(same: Sequence[Lifetime], end: int, offsets: dict[Buffer, int]) -> int:
    """Slots for buffers of one size: each goes where the earliest-ending one is over."""
    slots: list[tuple[int, int]] = []
    for life in sorted(same, key=lambda item: item.first):
        size = -(-life.buffer.nbytes // _ALIGN) * _ALIGN
        index = next((i for i, (_, last) in enumerate(slots) if last < life.first), None)
        if index is None:
            slots.append((end, life.last))
            offsets[life.buffer] = end
            end += size
        else:
            slots[index] = (slots[index][0], life.last)
            offsets[life.buffer] = slots[index][0]
    return end
