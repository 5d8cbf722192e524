from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._shape import constant_of


@op("MaxUnpool", since=(9, 11, 22))
class MaxUnpool(Op):
    """Zeros, with X[j] at the flat position I[j] of the shape that the window was pooled from.

    A larger output_shape has zeros behind. Where positions repeat, the last one counts, and the gradient goes
    to all of them.
    """

    static_operands = ("output_shape",)

    kernel_shape: tuple[int, ...]
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def _pooled_from(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        rank = len(self.kernel_shape)
        if len(shape) != rank + 2:
            raise ShapeError(f"kernel_shape {list(self.kernel_shape)} does not fit X {list(shape)}")
        pads = self.pads if self.pads is not None else (0,) * 2 * rank
        strides = self.strides if self.strides is not None else (1,) * rank
        spatial = (
            (n - 1) * s - pads[a] - pads[a + rank] + k
            for a, (n, s, k) in enumerate(zip(shape[2:], strides, self.kernel_shape, strict=True))
        )
        return (*shape[:2], *spatial)

    def kernel(self, X: Array, I: Array, output_shape: Array | None = None) -> Array:
        inner = self._pooled_from(X.shape)
        if I.shape != X.shape:
            raise ShapeError(f"I {list(I.shape)} does not have the shape of X {list(X.shape)}")
        size = math.prod(inner)
        if I.size and (I.min() < 0 or I.max() >= size):
            raise ShapeError(f"positions from {I.min()} to {I.max()} do not lie in 0…{size - 1}")
        flat = np.zeros(size, X.dtype)
        flat[I.ravel()] = X.ravel()
        whole = flat.reshape(inner)
        if output_shape is None or output_shape.size == 0:
            return whole
        shape = tuple(int(n) for n in output_shape)
        if len(shape) != len(inner) or any(n < m for n, m in zip(shape, inner, strict=True)):
            raise ShapeError(f"output_shape {list(shape)} is smaller than {list(inner)}")
        y = np.zeros(shape, X.dtype)
        y[tuple(map(slice, inner))] = whole
        return y

    def lower(
        self,
        static: Static,
        outputs: Values,
        X: ir.Value,
        I: ir.Value,
        output_shape: ir.Value | None = None,
    ) -> requests.Request:
        inner = self._pooled_from(static.shape(X))
        if static.shape(outputs[0]) != inner or static.shape(I) != static.shape(X):
            return requests.Unsupported("output_shape is larger than what the window was pooled from")
        return requests.Loop((outputs[0],), (X, I), _unpooled, indices=((I, math.prod(inner)),))

    def infer(
        self,
        X: ir.Value,
        I: ir.Value,
        output_shape: ir.Value | None = None,
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None] | None]:
        dims = dims_of(X)
        if output_shape is None or dims is None:
            return [None]
        known = constant_of(output_shape)
        shape = (None,) * len(dims) if known is None else tuple(int(n) for n in known)
        return [(dtype_of(X), shape)]

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        X: ir.Value,
        I: ir.Value,
        output_shape: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        if output_shape is not None:
            dims = dims_of(X)
            static = [] if dims is None else [d for d in dims if isinstance(d, int)]
            if dims is None or len(static) != len(dims):
                raise UnsupportedError("the gradient of MaxUnpool with output_shape needs the shape of X")
            inner = self._pooled_from(tuple(static))
            dy = g.Slice(dy, [0] * len(inner), list(inner))
        return (g.reshape_like(g.Gather(g.Reshape(dy, [-1]), g.Reshape(I, [-1])), X), None, None)


def _unpooled(thread: int, threads: int, y: Array, X: Array, I: Array) -> None:
    """Elements of the result are shared out: each thread takes the positions that are its own."""
    low, high = y.size * thread // threads, y.size * (thread + 1) // threads
    for at in range(low, high):
        y.flat[at] = 0
    for i in range(X.size):
        at = I.flat[i]
        if low <= at < high:
            y.flat[at] = X.flat[i]
