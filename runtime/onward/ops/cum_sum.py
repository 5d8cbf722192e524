from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op
from onward.ops._shape import normalized


@op("CumSum", since=(11, 14))
class CumSum(Op):
    """The running sum along an axis; from the end with reverse, without the element itself with exclusive."""

    static_operands = ("axis",)

    exclusive: int = 0
    reverse: int = 0

    def kernel(self, x: Array, axis: Array) -> Array:
        return running(np.add, x, axis, bool(self.exclusive), bool(self.reverse))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, x: ir.Value, axis: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return g.CumSum(dy, axis, exclusive=self.exclusive, reverse=1 - self.reverse), None


def running(combine: np.ufunc, x: Array, axis: Array, exclusive: bool, reverse: bool) -> Array:
    """The running sum or product of x along an axis."""
    along = normalized(int(axis.reshape(-1)[0]), x.ndim)
    ordered = np.flip(x, along) if reverse else x
    y = combine.accumulate(ordered, axis=along, dtype=x.dtype)
    if exclusive:
        shifted = np.full_like(y, combine.identity)
        later = tuple(slice(1, None) if i == along else slice(None) for i in range(x.ndim))
        earlier = tuple(slice(None, -1) if i == along else slice(None) for i in range(x.ndim))
        shifted[later] = y[earlier]
        y = shifted
    return np.flip(y, along) if reverse else y
