"""Walking strided operands: merging of axes, and loops that split the outer ones over threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from onward.compile.codegen.builder import Function
from onward.compile.codegen.values import Value

__all__ = ["Body", "decode", "flat", "merge", "nested"]


class Body(Protocol):
    """What is done along one run."""

    def run(self, starts: Sequence[Value], steps: Sequence[int], low: Value, high: Value) -> None:
        """Elements low to high of a run: operand i's element e is at starts[i] + e * steps[i]."""


def merge(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, list[int], list[list[int]]]:
    """Merge neighbouring axes of [batch, *shape] that every operand walks without a gap.

    Gives (multiple, sizes, strides): the first axis is then batch * multiple, the others have these sizes.
    """
    walks = [list(s) for s in strides]
    sizes = [-1, *shape]
    multiple = 1
    axis = len(sizes) - 1
    while axis > 0:
        size = sizes[axis]
        gapless = all(w[axis - 1] == w[axis] * size for w in walks)
        if gapless or size == 1:
            if size != 1:
                if axis - 1 == 0:
                    multiple *= size
                else:
                    sizes[axis - 1] *= size
                for w in walks:
                    w[axis - 1] = w[axis]
            del sizes[axis]
            for w in walks:
                del w[axis]
            axis = min(axis, len(sizes) - 1) if axis < len(sizes) else len(sizes) - 1
            continue
        axis -= 1
    return multiple, sizes[1:], walks


def flat(f: Function, total: Value, body: Body, steps: list[int]) -> None:
    """One run of `total` elements, split over threads in blocks of vectors."""
    _, thread, threads = f.arguments
    block = f.module.target.tuning.element_block * f.lanes
    low, high = f.share((total + (block - 1)) // block, thread, threads)
    zero = f.value(0)
    body.run([zero] * len(steps), steps, low * block, f.smin(high * block, total))


def nested(f: Function, total: Value, sizes: list[int], walks: list[list[int]], body: Body) -> None:
    """Outer axes as one range of units, cut where the last outer axis wraps; vectors along the last axis."""
    _, thread, threads = f.arguments
    *middle, inner = sizes
    outer_sizes: list[int] = middle
    units = total
    for size in outer_sizes:
        units = units * size
    low, high = f.share(units, thread, threads)
    steps = [w[-1] for w in walks]
    wrap: Value | int = outer_sizes[-1] if outer_sizes else total

    def runs(unit: Value, count: Value) -> None:
        """`count` units that differ in the last outer axis only."""
        starts = decode(f, unit, outer_sizes, walks)
        with f.range(0, count) as j:
            moved = [s + j * w[-2] for s, w in zip(starts, walks, strict=True)]
            body.run(moved, steps, f.value(0), f.value(inner))

    if not outer_sizes:
        runs(low, high - low)
        return
    position = f.local("i64")
    f.store(low, position)
    with f.repeat() as leave:
        unit = f.load(position, "i64")
        leave(f.compare("sge", unit, high))
        count = f.smin(high - unit, f.value(wrap) - unit % wrap)
        f.store(unit + count, position)
        runs(unit, count)


def decode(f: Function, unit: Value, sizes: list[int], walks: list[list[int]]) -> list[Value]:
    """Each operand's offset at the unit whose number runs over [batch, *sizes]."""
    starts: list[Value] = [f.value(0) for _ in walks]
    rest = unit
    for axis in range(len(sizes), -1, -1):
        if axis == 0:
            index = rest
        else:
            index = rest % sizes[axis - 1]
            rest = rest // sizes[axis - 1]
        starts = [s + index * w[axis] for s, w in zip(starts, walks, strict=True)]
    return starts
