"""Sampling between pixels: which pixels a coordinate reads, with which weights, and their slopes.

Written once for arrays and for graph values: `Arrays` and `Graph` have the same arithmetic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.graph import Builder

__all__ = ["Arrays", "Graph", "Sampling", "Tap", "corners", "taps"]


@final
class Arrays:
    """Arithmetic on arrays."""

    def __init__(self) -> None:
        self.add, self.sub, self.mul, self.floor = np.add, np.subtract, np.multiply, np.floor
        self.rint, self.where, self.less = np.rint, np.where, np.less

    def index(self, x: Any) -> Any:
        """Whole numbers as positions."""
        return np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0).astype(np.int64)


@final
class Graph:
    """Arithmetic on graph values, numbers in their type."""

    def __init__(self, g: Builder, dtype: ir.DataType) -> None:
        self._g = g
        self._dtype = dtype
        self.floor, self.rint = g.Floor, g.Round

    def add(self, a: Any, b: Any) -> Any:
        """a + b."""
        return self._g.Add(a, b) if isinstance(a, ir.Value) or isinstance(b, ir.Value) else a + b

    def sub(self, a: Any, b: Any) -> Any:
        """a − b."""
        return self._g.Sub(a, b) if isinstance(a, ir.Value) or isinstance(b, ir.Value) else a - b

    def mul(self, a: Any, b: Any) -> Any:
        """a · b."""
        return self._g.Mul(a, b) if isinstance(a, ir.Value) or isinstance(b, ir.Value) else a * b

    def less(self, a: Any, b: Any) -> ir.Value:
        """a < b."""
        return self._g.Less(a, b)

    def where(self, condition: ir.Value, a: Any, b: Any) -> ir.Value:
        """a where the condition holds, else b."""
        a, b = (v if isinstance(v, ir.Value) else self._g.const(v, self._dtype) for v in (a, b))
        return self._g.Where(condition, a, b)

    def index(self, x: Any) -> ir.Value:
        """Whole numbers as positions."""
        return self._g.Cast(x, to=int(ir.DataType.INT64))


@final
@dataclass(frozen=True)
class Sampling:
    """How values between and outside pixels are made: GridSample's attributes."""

    mode: str = "linear"
    padding_mode: str = "zeros"
    align_corners: bool = False

    @property
    def reach(self) -> int:
        """Pixels read along an axis."""
        return {"nearest": 1, "linear": 2, "cubic": 4}[self.mode]


@final
@dataclass(frozen=True)
class Tap:
    """A pixel along an axis: its position inside the axis, its weight, and the weight's slope."""

    index: Any
    weight: Any
    slope: Any


def taps(m: Any, x: Any, extent: int, how: Sampling) -> list[Tap]:
    """The pixels that coordinate x along an axis reads; pixel i is at coordinate i."""
    low, high = (0.0, extent - 1.0) if how.align_corners else (-0.5, extent - 0.5)
    turn = None
    if how.mode == "nearest":
        x = m.rint(x)
    if how.padding_mode == "border":
        outside = m.add(m.where(m.less(x, low), 1.0, 0.0), m.where(m.less(high, x), 1.0, 0.0))
        turn = m.sub(1.0, outside)
        x = m.where(m.less(x, low), 0.0, m.where(m.less(high, x), extent - 1.0, x))
    elif how.padding_mode == "reflection":
        x, turn = _reflected(m, x, low, high)
    if how.mode == "nearest":
        return [_inside(m, x, extent, how, 1.0, 0.0, None)]
    base = m.floor(x)
    f = m.sub(x, base)
    return [
        _inside(m, m.add(base, float(k)), extent, how, *_weight(m, f, k, how.mode), turn)
        for k in ((0, 1) if how.mode == "linear" else (-1, 0, 1, 2))
    ]


def corners(
    m: Any, axes: Sequence[Sequence[Tap]], extents: Sequence[int]
) -> Iterator[tuple[Any, Any, list[Any]]]:
    """(position in the flattened axes, weight, slope along each axis) of every pixel that is read."""
    strides = [math.prod(extents[a + 1 :]) for a in range(len(extents))]
    for corner in itertools.product(*axes):
        place = None
        for tap, stride in zip(corner, strides, strict=True):
            part = tap.index if stride == 1 else m.mul(tap.index, stride)
            place = part if place is None else m.add(place, part)
        yield (
            place,
            _product(m, [t.weight for t in corner]),
            [
                _product(m, [t.slope if b == a else t.weight for b, t in enumerate(corner)])
                for a in range(len(corner))
            ],
        )


def _product(m: Any, factors: Sequence[Any]) -> Any:
    found = factors[0]
    for factor in factors[1:]:
        found = m.mul(found, factor)
    return found


def _inside(m: Any, x: Any, extent: int, how: Sampling, weight: Any, slope: Any, turn: Any) -> Tap:
    """A tap at a whole coordinate, brought inside the axis."""
    below, above = m.less(x, 0.0), m.less(extent - 1.0, x)
    if how.padding_mode == "zeros":
        there = m.where(below, 0.0, m.where(above, 0.0, m.where(m.less(x, np.inf), 1.0, 0.0)))
        weight, slope = m.mul(there, weight), m.mul(there, slope)
    elif how.padding_mode == "reflection":
        low, high = (0.0, extent - 1.0) if how.align_corners else (-0.5, extent - 0.5)
        x, _ = _reflected(m, x, low, high)
        below, above = m.less(x, 0.0), m.less(extent - 1.0, x)
    if turn is not None:
        slope = m.mul(slope, turn)
    place = m.where(below, 0.0, m.where(above, extent - 1.0, x))
    return Tap(m.index(place), weight, slope)


def _reflected(m: Any, x: Any, low: float, high: float) -> tuple[Any, Any]:
    """x reflected at both ends until it is between them, and the slope of that."""
    span = high - low
    if span == 0:
        return m.where(m.less(x, low), low, low), m.where(m.less(x, low), 0.0, 0.0)
    from_low = m.sub(x, low)
    around = m.sub(from_low, m.mul(m.floor(m.mul(from_low, 1 / (2 * span))), 2 * span))
    back = m.less(span, around)
    return m.add(m.where(back, m.sub(2 * span, around), around), low), m.where(back, -1.0, 1.0)


def _weight(m: Any, f: Any, k: int, mode: str) -> tuple[Any, Any]:
    """The weight of the pixel k after the one below the coordinate, f above it; and its slope."""
    if mode == "linear":
        return (m.sub(1.0, f), m.sub(m.sub(f, f), 1.0)) if k == 0 else (f, m.add(m.sub(f, f), 1.0))
    a = -0.75
    distance, sign = (m.sub(f, float(k)), 1.0) if k <= 0 else (m.sub(float(k), f), -1.0)
    third, second, first, rest = (a + 2, -(a + 3), 0.0, 1.0) if k in (0, 1) else (a, -5 * a, 8 * a, -4 * a)
    d = distance
    weight = m.add(m.mul(m.add(m.mul(m.add(m.mul(d, third), second), d), first), d), rest)
    slope = m.add(m.mul(m.add(m.mul(d, 3 * third), 2 * second), d), first)
    return weight, m.mul(slope, sign)
