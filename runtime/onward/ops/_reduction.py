"""What all reductions share: the axes, as an attribute in older versions and as an input in newer ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, requests
from onward.graph.requests import Static, Unsupported, Values
from onward.ops._shape import constant_of, rank_of

__all__ = ["AxesAttribute", "AxesInput", "Compiled", "position_of"]


def _same(x: Expression) -> Expression:
    return x


def _total(x: Expression, count: int) -> Expression:
    return x


@dataclass(frozen=True)
class Compiled:
    """A reduction as the compiler takes it: after(`how` of before(x), the number of elements)."""

    how: str
    before: Callable[[Expression], Expression] = _same
    after: Callable[[Expression, int], Expression] = _total


def _request(
    compiled: Compiled | None, y: ir.Value, data: ir.Value, axes: Sequence[int]
) -> requests.Reduction | Unsupported:
    if compiled is None:
        return Unsupported("no compiled kernel")
    return requests.Reduction(y, data, tuple(axes), compiled.how, compiled.before, compiled.after)


def _each_once(axes: Array, rank: int) -> tuple[int, ...]:
    """The axes, each of them once; what lies outside of the rank stays as it is, and is refused later."""
    found = [int(a) for a in axes.reshape(-1)]
    return tuple(dict.fromkeys(a + rank if -rank <= a < 0 else a for a in found))


@dataclass(frozen=True, kw_only=True)
class AxesInput(Op, ABC):
    """A reduction whose axes are its second input; all axes by default."""

    static_operands = ("axes",)
    compiled: ClassVar[Compiled | None] = None

    keepdims: int = 1
    noop_with_empty_axes: int = 0

    @abstractmethod
    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        """The reduction over axes, in data's element type."""

    def kernel(self, data: Array, axes: Array | None = None) -> Array:
        if axes is not None and axes.size:
            return self.reduce(data, _each_once(axes, data.ndim))
        return self.reduce(data, () if self.noop_with_empty_axes else tuple(range(data.ndim)))

    def lower(
        self, static: Static, outputs: Values, data: ir.Value, axes: ir.Value | None = None
    ) -> requests.Reduction | requests.Identity | requests.Body | Unsupported:
        """The same for every reduction that says how it is compiled."""
        found = None if axes is None else static.known(axes)
        if axes is not None and found is None:
            return Unsupported("axes that are not constant")
        named = () if found is None else _each_once(found, len(static.shape(data)))
        if not named and self.noop_with_empty_axes:
            if (
                self.compiled is None
                or self.compiled.before is not _same
                or self.compiled.after is not _total
            ):
                return Unsupported("no axes to reduce")
            return requests.Identity(outputs[0], data)
        return _request(self.compiled, outputs[0], data, named)

    def spread(self, g: Builder, value: ir.Value, axes: ir.Value | None) -> ir.Value:
        """A value of the output's shape, with the reduced axes back as extents of 1."""
        return value if self.keepdims or axes is None else g.Unsqueeze(value, axes)

    def count(self, g: Builder, data: ir.Value, y: ir.Value, axes: ir.Value | None) -> ir.Value:
        """How many elements of data meet in one of the output, of data's element type."""
        known = constant_of(axes)
        if known is not None and known.size:
            return g.size(data, list(_each_once(known, rank_of(data))))
        return g.Div(g.size(data), g.size(y))

    def again(self, g: Builder, op_type: str, value: ir.Value, axes: ir.Value | None) -> ir.Value:
        """Another reduction over the same axes, which stay as extents of 1."""
        noop = self.noop_with_empty_axes
        return g.emit(op_type, value, axes, keepdims=1, noop_with_empty_axes=noop)[0]


@dataclass(frozen=True, kw_only=True)
class AxesAttribute(Op):
    """An older version of a reduction, whose axes are an attribute; all axes by default."""

    axes: tuple[int, ...] | None = None
    keepdims: int = 1

    def canonical(self, g: Builder, data: ir.Value) -> ir.Value:
        """The current version, whose axes are an input."""
        axes = g.const(self.axes, np.int64) if self.axes else None
        return g.emit(self.op_type, data, axes, keepdims=self.keepdims)[0]


def position_of(find: Callable[..., Any], data: Array, axis: int, keepdims: bool, last: bool) -> Array:
    """Where `numpy.argmax` or `argmin` finds its element along an axis: the first or last of equal ones."""
    if last:
        found = data.shape[axis] - 1 - find(np.flip(data, axis), axis=axis, keepdims=keepdims)
    else:
        found = find(data, axis=axis, keepdims=keepdims)
    return np.asarray(found, np.int64)
