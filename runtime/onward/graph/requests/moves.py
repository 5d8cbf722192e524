"""Requests for elements that move, are repeated or converted, and are not computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onward.graph.requests.base import Request, Static, Values, first_misfit
from onward.graph.resampling import Resampling
from onward.graph.types import Array

__all__ = [
    "Broadcast",
    "Concat",
    "Convert",
    "Fill",
    "Gather",
    "GatherGradient",
    "Identity",
    "Pad",
    "Positions",
    "PositionsGradient",
    "Reinterpret",
    "Resample",
    "Slices",
    "Take",
    "Tile",
    "Transpose",
    "View",
]


@dataclass(frozen=True)
class Identity(Request):
    """y = x."""

    y: ir.Value
    x: ir.Value

    def misfit(self, static: Static) -> str | None:
        return first_misfit(static, ("its operand", self.x, static.shape(self.y)))


@dataclass(frozen=True)
class View(Request):
    """y is x's elements in the same order under another shape."""

    y: ir.Value
    x: ir.Value

    def misfit(self, static: Static) -> str | None:
        x, y = static.shape(self.x), static.shape(self.y)
        return None if prod(x) == prod(y) else f"the elements of {list(x)} have no shape {list(y)}"


@dataclass(frozen=True)
class Reinterpret(Request):
    """y is x's bits as another element type of the same width."""

    y: ir.Value
    x: ir.Value


@dataclass(frozen=True)
class Transpose(Request):
    """Axis i of y is axis perm[i] of x."""

    y: ir.Value
    x: ir.Value
    perm: tuple[int, ...]


@dataclass(frozen=True)
class Slices(Request):
    """Views of x: outputs[i] = x[picked[i]], with a slice for each axis."""

    outputs: Values
    x: ir.Value
    picked: tuple[tuple[slice, ...], ...]


@dataclass(frozen=True)
class Concat(Request):
    """The operands one behind the other along an axis."""

    y: ir.Value
    operands: Values
    axis: int

    @property
    def same_layout(self) -> Values:
        return (*self.operands, self.y)


@dataclass(frozen=True)
class Pad(Request):
    """x inside y from `before` on along each axis, what is negative cut off; `value` around it, a number or a
    tensor of one element."""

    y: ir.Value
    x: ir.Value
    before: tuple[int, ...]
    value: float | ir.Value

    @property
    def same_layout(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class Broadcast(Request):
    """x broadcast to y's shape."""

    y: ir.Value
    x: ir.Value


@dataclass(frozen=True)
class Tile(Request):
    """x repeated along each axis."""

    y: ir.Value
    x: ir.Value
    repeats: tuple[int, ...]


@dataclass(frozen=True)
class Fill(Request):
    """One value everywhere; `value` is an array of no axes."""

    y: ir.Value
    value: Array


@dataclass(frozen=True)
class Convert(Request):
    """x in y's element type.

    Attributes:
        kernel: what NumPy makes of an array of x's type, or of float32: types that no processor computes with
            are looked up in what it gives.
    """

    y: ir.Value
    x: ir.Value
    kernel: Callable[[Array], Array] | None = None


@dataclass(frozen=True)
class Gather(Request):
    """y = data[indices] along an axis."""

    y: ir.Value
    data: ir.Value
    indices: ir.Value
    axis: int


@dataclass(frozen=True)
class Take(Request):
    """Each element of y is one of data, whose place along some axes indices say.

    Attributes:
        data_axes: for each axis of y the axis of data that runs along with it, or None.
        index_axes: the same of indices.
        picked: the axes of data whose positions indices hold: where there is one, by themselves; else as the
            tuples along the last axis. Negative positions count from the end.
        tuples: whether they are tuples.
    """

    y: ir.Value
    data: ir.Value
    indices: ir.Value
    data_axes: tuple[int | None, ...]
    index_axes: tuple[int | None, ...]
    picked: tuple[int, ...]
    tuples: bool = False


@dataclass(frozen=True)
class GatherGradient(Request):
    """Zeros, to which the slices of dy along an axis are added where their index points, in order."""

    ddata: ir.Value
    dy: ir.Value
    indices: ir.Value
    axis: int

    def misfit(self, static: Static) -> str | None:
        whole = static.shape(self.ddata)
        axis = self.axis % len(whole)
        wanted = (*whole[:axis], *static.shape(self.indices), *whole[axis + 1 :])
        return first_misfit(static, ("dy", self.dy, wanted))


@dataclass(frozen=True)
class Positions(Request):
    """y = x at known positions of an axis; `single` where there is one and y lacks the axis."""

    y: ir.Value
    x: ir.Value
    axis: int
    positions: range
    single: bool


@dataclass(frozen=True)
class PositionsGradient(Request):
    """Zeros, and dy at the positions of `Positions`."""

    dx: ir.Value
    dy: ir.Value
    axis: int
    positions: range
    single: bool

    def misfit(self, static: Static) -> str | None:
        whole = static.shape(self.dx)
        taken = () if self.single else (len(self.positions),)
        wanted = (*whole[: self.axis], *taken, *whole[self.axis + 1 :])
        return first_misfit(static, ("dy", self.dy, wanted))


@dataclass(frozen=True)
class Resample(Request):
    """x resampled along axes, one after the other."""

    y: ir.Value
    x: ir.Value
    lines: tuple[tuple[int, Resampling], ...]

    def misfit(self, static: Static) -> str | None:
        wanted = list(static.shape(self.y))
        for axis, line in self.lines:
            wanted[axis] = line.extent
        return first_misfit(static, ("X", self.x, tuple(wanted)))

    @property
    def channels_last(self) -> Values:
        return (self.x, self.y) if all(axis >= 2 for axis, _ in self.lines) else ()
