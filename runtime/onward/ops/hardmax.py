from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, dtype_of, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._shape import normalized, over_trailing_axes


@op("Hardmax", since=13)
class Hardmax(Op):
    """1 at the first largest element along an axis, 0 elsewhere."""

    axis: int = -1

    def kernel(self, input: Array) -> Array:
        return _hardmax(input, self.axis)

    def lower(self, static: Static, outputs: Values, input: ir.Value) -> requests.Body:
        return requests.Body()

    def expand(self, g: Builder, input: ir.Value) -> ir.Value:
        shape = static_shape(input)
        assert shape is not None
        axis = normalized(self.axis, len(shape))
        places = np.arange(shape[axis]).reshape(-1, *(1,) * (len(shape) - axis - 1))
        chosen = g.Equal(g.const(places, np.int64), g.ArgMax(input, axis=axis))
        return g.Where(chosen, g.const(1, dtype_of(input)), g.const(0, dtype_of(input)))

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[None, ...]:
        return (None,)


@op("Hardmax", since=(1, 11))
class Hardmax1(Op):
    """Hardmax over all axes from `axis` on."""

    axis: int = 1

    def canonical(self, g: Builder, input: ir.Value) -> ir.Value:
        return over_trailing_axes(g, "Hardmax", input, self.axis)


def _hardmax(x: Array, axis: int) -> Array:
    y = np.zeros_like(x)
    if x.size:
        np.put_along_axis(y, np.expand_dims(np.argmax(x, axis), axis), x.dtype.type(1), axis)
    return y
