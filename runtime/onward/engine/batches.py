"""Batches in parts: which sizes a batch is cut into so that few plans serve batches of every size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping
from typing import Literal, TypeAlias, final

__all__ = ["Batches", "Repeats", "cover", "powers", "rows_of", "with_rows"]

Batches: TypeAlias = Literal["exact", "split"]
"""Whether each size of a batch has a plan of its own, or sizes without one are run in parts."""

_LARGEST = 1024
"""Samples of the largest part. Past some hundred, a run's time goes by its samples."""

_MOST = 16
"""Runs that answer one batch while a plan for a larger part is made. One planning costs 2 to 50 ms and some
compilation; 16 runs of a small network at one sample, less than 2 ms (`python -m benchmarks.new_sizes`)."""

_REMEMBERED = 256


def rows_of(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The samples of a batch, along the first axis of every input; None where inputs have no such axis."""
    firsts = {shape[0] if shape else 0 for shape in shapes.values()}
    rows = firsts.pop() if len(firsts) == 1 else 0
    return rows or None


def with_rows(shapes: Mapping[str, tuple[int, ...]], rows: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a batch of another size."""
    return {name: (rows, *shape[1:]) for name, shape in shapes.items()}


def powers(rows: int) -> list[int]:
    """Powers of two, the largest first, that sum to a number; none is above 1024."""
    parts = [_LARGEST] * (rows // _LARGEST)
    rest = rows % _LARGEST
    return parts + [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]


def cover(rows: int, sizes: Collection[int]) -> list[int] | None:
    """Sizes that sum to a number, the largest first; None where it takes too many runs, or cannot be."""
    parts: list[int] = []
    allowed = max(_MOST, len(powers(rows)))
    for size in sorted(sizes, reverse=True):
        parts += [size] * min(rows // size, allowed + 1)
        rows %= size
    return parts if rows == 0 and len(parts) <= allowed else None


@final
class Repeats:
    """Counts how often something came, of what came last.

    Args:
        enough: how often something has to come to count as repeated.
    """

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._counts: OrderedDict[Hashable, int] = OrderedDict()

    def again(self, key: Hashable) -> bool:
        """Count, and say whether that is often enough."""
        self._counts[key] = count = self._counts.get(key, 0) + 1
        self._counts.move_to_end(key)
        if len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)
        return count >= self._enough
