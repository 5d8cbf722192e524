from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op
from onward.ops._shape import over_trailing_axes


@op("Hardmax", since=13)
class Hardmax(Op):
    """1 at the first largest element along an axis, 0 elsewhere."""

    axis: int = -1

    def kernel(self, input: Array) -> Array:
        return _hardmax(input, self.axis)

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
