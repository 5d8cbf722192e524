"""Squares of elements transposed in registers."""

from __future__ import annotations

from collections.abc import Sequence

from onward.compile.codegen.builder import Function
from onward.compile.codegen.values import Value

__all__ = ["transposed"]


def transposed(f: Function, rows: Sequence[Value]) -> list[Value]:
    """A square of lanes x lanes elements, one vector a row, transposed; missing rows give undefined lanes.

    Every step is one shuffle of the instruction set: for floats, 4 x 4 squares inside 128 bits are transposed
    by unpacking, then runs of 128 bits among themselves.
    """
    lanes = f.lanes
    rows = [*rows, *[Value(f, "poison", f.vector)] * (lanes - len(rows))]
    if lanes == 2:
        return [f.shuffle(rows[0], rows[1], (i, i + 2)) for i in range(2)]
    starts = range(0, lanes, 4)
    singles = [[q + i for q in starts for i in order] for order in _unpack(1, lanes)]
    pairs = [[q + i for q in starts for i in order] for order in _unpack(2, lanes)]
    out: list[Value] = []
    for base in starts:
        a, b, c, d = rows[base : base + 4]
        ab, cd = [f.shuffle(a, b, m) for m in singles], [f.shuffle(c, d, m) for m in singles]
        out += [f.shuffle(x, y, m) for x, y in zip(ab, cd, strict=True) for m in pairs]
    for j in range(4):
        out[j::4] = _runs_turned(f, out[j::4])
    return out


def _unpack(size: int, lanes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where four lanes come from when the first or last two of each operand are taken, `size` at a time."""
    if size == 1:
        return (0, lanes, 1, lanes + 1), (2, lanes + 2, 3, lanes + 3)
    return (0, 1, lanes, lanes + 1), (2, 3, lanes + 2, lanes + 3)


def _runs_turned(f: Function, rows: Sequence[Value]) -> list[Value]:
    """A square of runs of four lanes transposed: the even and the odd runs of neighbours, each half again."""
    if len(rows) == 1:
        return list(rows)
    halves = []
    for first in (0, 4):
        chosen = [start + i for start in range(first, 2 * f.lanes, 8) for i in range(4)]
        joined = [f.shuffle(a, b, chosen) for a, b in zip(rows[::2], rows[1::2], strict=True)]
        halves.append(_runs_turned(f, joined))
    return [row for pair in zip(*halves, strict=True) for row in pair]
