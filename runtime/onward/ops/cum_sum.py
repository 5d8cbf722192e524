from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._shape import normalized


@op("CumSum", since=(11, 14))
class CumSum(Op):
    """The running sum along an axis; from the end with reverse, without the element itself with exclusive."""

    static_operands = ("axis",)

    exclusive: int = 0
    reverse: int = 0

    def kernel(self, x: Array, axis: Array) -> Array:
        return running(np.add, x, axis, bool(self.exclusive), bool(self.reverse))

    def lower(
        self, static: Static, outputs: Values, x: ir.Value, axis: ir.Value
    ) -> requests.Loop | requests.Unsupported:
        return running_loop(static, outputs, x, axis, "add", self.exclusive, self.reverse)

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


def running_loop(
    static: Static, outputs: Values, x: ir.Value, axis: ir.Value, how: str, exclusive: int, reverse: int
) -> requests.Loop | requests.Unsupported:
    """The running sum ("add") or product ("mul") along a known axis."""
    known = static.known(axis)
    if known is None:
        return requests.Unsupported("an axis that is not constant")
    along = normalized(int(known.reshape(-1)[0]), len(static.shape(x)))
    numbers = (along, bool(exclusive), bool(reverse), how == "mul")
    return requests.Loop(outputs, (x,), _totals, numbers)


def _totals(
    thread: int, threads: int, y: Array, x: Array, axis: int, exclusive: bool, reverse: bool, product: bool
) -> None:
    """Lines along the axis are shared out."""
    extent = x.shape[axis]
    step = 1
    for d in range(axis + 1, x.ndim):
        step *= x.shape[d]
    lines = x.size // extent
    for line in range(lines * thread // threads, lines * (thread + 1) // threads):
        first = line // step * step * extent + line % step
        for k in range(extent):
            at = first + (extent - 1 - k if reverse else k) * step
            before = first + (extent - k if reverse else k - 1) * step
            if k == 0:
                y.flat[at] = x.flat[at]
                if exclusive:
                    y.flat[at] = 1 if product else 0
            elif product:
                y.flat[at] = y.flat[before] * x.flat[before if exclusive else at]
            else:
                y.flat[at] = y.flat[before] + x.flat[before if exclusive else at]
