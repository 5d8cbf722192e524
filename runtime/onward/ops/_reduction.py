"""What all reductions share: the axes, as an attribute in older versions and as an input in newer ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Lowering, Op
from onward.ops._shape import constant_of

__all__ = ["AxesAttribute", "AxesInput", "position_of"]


@dataclass(frozen=True, kw_only=True)
class AxesInput(Op, ABC):
    """A reduction whose axes are its second input; all axes by default."""

    keepdims: int = 1
    noop_with_empty_axes: int = 0

    @abstractmethod
    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        """The reduction over axes, in data's element type."""

    def kernel(self, data: Array, axes: Array | None = None) -> Array:
        if axes is not None and axes.size:
            return self.reduce(data, tuple(int(a) for a in axes.reshape(-1)))
        return self.reduce(data, () if self.noop_with_empty_axes else tuple(range(data.ndim)))

    def named_axes(self, b: Lowering, axes: ir.Value | None) -> tuple[int, ...]:
        """The axes of a node that is being compiled; none for all of them."""
        found = None if axes is None else b.known(axes)
        if axes is not None and found is None:
            b.decline("axes that are not constant")
        named = () if found is None else tuple(int(a) for a in found)
        if not named and self.noop_with_empty_axes:
            b.decline("no axes to reduce")
        return named

    def spread(self, g: Builder, value: ir.Value, axes: ir.Value | None) -> ir.Value:
        """A value of the output's shape, with the reduced axes back as extents of 1."""
        return value if self.keepdims or axes is None else g.Unsqueeze(value, axes)

    def count(self, g: Builder, data: ir.Value, y: ir.Value, axes: ir.Value | None) -> ir.Value:
        """How many elements of data meet in one of the output, of data's element type."""
        known = constant_of(axes)
        if known is not None and known.size:
            return g.size(data, [int(a) for a in known.reshape(-1)])
        return g.Div(g.size(data), g.size(y))

    def again(self, g: Builder, op_type: str, value: ir.Value, axes: ir.Value | None) -> ir.Value:
        """Another reduction over the same axes, which stay as extents of 1."""
        noop = self.noop_with_empty_axes
        return g.emit(op_type, value, axes, keepdims=1, noop_with_empty_axes=noop)[0]


@dataclass(frozen=True, kw_only=True)
class AxesAttribute(Op, ABC):
    """A reduction whose axes are an attribute; all axes by default."""

    axes: tuple[int, ...] | None = None
    keepdims: int = 1

    @abstractmethod
    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        """The reduction over axes, in data's element type."""

    def kernel(self, data: Array) -> Array:
        return self.reduce(data, self.axes if self.axes else tuple(range(data.ndim)))


def position_of(find: Callable[..., Any], data: Array, axis: int, keepdims: bool, last: bool) -> Array:
    """Where `numpy.argmax` or `argmin` finds its element along an axis: the first or last of equal ones."""
    if last:
        found = data.shape[axis] - 1 - find(np.flip(data, axis), axis=axis, keepdims=keepdims)
    else:
        found = find(data, axis=axis, keepdims=keepdims)
    return np.asarray(found, np.int64)
