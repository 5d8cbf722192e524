"""The largest and smallest of operands or along axes: what both directions share."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, dtype_of
from onward.ops._floats import is_integer
from onward.ops._reduction import AxesInput

__all__ = ["ExtremeOf", "ExtremeOver", "extreme"]


def extreme(of: np.ufunc, data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """`np.maximum` or `np.minimum` over axes; over none of them its identity: an infinity or a limit."""
    largest = of is np.minimum
    initial: Any = np.inf if largest else -np.inf
    if data.dtype.kind == "b":
        initial = largest
    elif is_integer(data):
        initial = np.iinfo(data.dtype).max if largest else np.iinfo(data.dtype).min
    return np.asarray(of.reduce(data, axis=axes, keepdims=keepdims, initial=initial))


@dataclass(frozen=True, kw_only=True)
class ExtremeOf(Op):
    """Of several operands; ties share the gradient."""

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, *data_0: ir.Value) -> tuple[ir.Value, ...]:
        if len(data_0) == 1:
            return (dy,)
        chosen = [g.Equal(x, y) for x in data_0]
        share = g.Div(dy, g.Sum(*(g.Cast(mask, to=int(dtype_of(dy))) for mask in chosen)))
        return tuple(g.Where(mask, share, 0.0) for mask in chosen)


@dataclass(frozen=True, kw_only=True)
class ExtremeOver(AxesInput, ABC):
    """Over axes; ties share the gradient."""

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        chosen = g.Cast(g.Equal(data, self.spread(g, y, axes)), to=int(dtype_of(data)))
        share = g.Div(self.spread(g, dy, axes), self.again(g, "ReduceSum", chosen, axes))
        return g.Mul(chosen, share), None
