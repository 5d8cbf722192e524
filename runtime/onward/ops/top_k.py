from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op


@op("TopK", since=(10, 11, 24), multiple_outputs=True)
class TopK(Op):
    """The K largest or smallest elements along an axis, in order, and their positions; the first of ties."""

    static_operands = ("K",)

    axis: int = -1
    largest: int = 1
    sorted: int = 1

    def kernel(self, X: Array, K: Array) -> tuple[Array, ...]:
        return _top(X, int(K.reshape(-1)[0]), self.axis, bool(self.largest))

    def gradient(
        self,
        g: Builder,
        dy: tuple[ir.Value | None, ...],
        y: tuple[ir.Value, ...],
        X: ir.Value,
        K: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        if dy[0] is None:
            return None, None
        return g.ScatterElements(g.zeros_like(X), y[1], dy[0], axis=self.axis, reduction="add"), None


@op("TopK", since=1)
class TopK1(Op):
    """TopK whose k is an attribute."""

    axis: int = -1
    k: int

    def canonical(self, g: Builder, X: ir.Value) -> tuple[ir.Value, ...]:
        return g.emit("TopK", X, [self.k], outputs=2, axis=self.axis)


def _top(x: Array, k: int, axis: int, largest: bool) -> tuple[Array, ...]:
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"K is {k}, and the axis has {x.shape[axis]} elements")
    if largest:
        # sorted backwards from the end, so that of equal elements the first comes first
        order = x.shape[axis] - 1 - np.argsort(np.flip(x, axis), axis=axis, kind="stable")
        order = np.flip(order, axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    order = np.take(order, np.arange(k), axis=axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64, copy=False)
