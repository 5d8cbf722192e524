from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, UnsupportedError
from onward.graph import Array, Builder, Dim, Op, dims_of, dtype_of, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._convolution import working_dtype
from onward.ops._pooling import Pooling, spread, window_sum
from onward.ops._window import shaped_like


@op("LpPool", since=(2, 11, 18, 22))
class LpPool(Pooling):
    """Y = (Σ |X|^p)^(1/p) over each window; pads count as zeros."""

    p: int = 2

    def kernel(self, X: Array) -> Array:
        work = working_dtype(X.dtype)
        powers = np.abs(X.astype(work, copy=False)) ** self.p
        sums = window_sum(powers, self.window().over(X.shape[2:]).reduced)
        return (sums ** work.type(1 / self.p)).astype(X.dtype, copy=False)

    def lower(self, static: Static, outputs: Values, X: ir.Value) -> requests.Body:
        return requests.Body()

    def expand(self, g: Builder, X: ir.Value) -> ir.Value:
        """Powers, their averages over windows that end where the last one does, and roots."""
        shape = static_shape(X) or ()
        geometry = self.window().over(shape[2:])
        end = (
            max(0, span - i - a)
            for span, i, a in zip(geometry.span, geometry.spatial, geometry.begin, strict=True)
        )
        powers = g.Mul(X, X) if self.p == 2 else g.Abs(X)
        if self.p > 2:
            powers = g.Pow(powers, float(self.p))
        means = g.AveragePool(
            powers,
            kernel_shape=geometry.kernel,
            strides=geometry.strides,
            dilations=geometry.dilations,
            pads=[*geometry.begin, *end],
            count_include_pad=1,
        )
        sums = g.Mul(means, float(np.prod(geometry.kernel)))
        return sums if self.p == 1 else g.Sqrt(sums) if self.p == 2 else g.Pow(sums, 1 / self.p)

    def infer(self, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(dtype_of(X), self.window().pooled_dims(dims_of(X)))]

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value | None, ...]:
        dims = dims_of(X)
        geometry = self.window().over_dims(dims[2:]) if dims is not None else None
        if geometry is None:
            raise UnsupportedError("the gradient of LpPool needs static spatial extents")
        if self.p == 1:
            return (g.Mul(g.Sign(X), shaped_like(spread(g, dy, geometry), X)),)
        # dY · Y^(1 − p), and 0 where every element of the window is 0
        share = g.Where(g.Equal(y, 0.0), 0.0, g.Div(dy, g.Pow(y, float(self.p - 1))))
        slope = g.Mul(g.Sign(X), g.Pow(g.Abs(X), float(self.p - 1)))
        return (g.Mul(slope, shaped_like(spread(g, share, geometry), X)),)


@op("LpPool", since=1)
class LpPool1(Op):
    """LpPool whose p is a float."""

    auto_pad: str = "NOTSET"
    kernel_shape: tuple[int, ...] | None = None
    p: float = 2.0
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        if self.kernel_shape is None:
            raise InvalidModelError("kernel_shape is missing: the version does not say what stands for it")
        return g.LpPool(
            X,
            auto_pad=self.auto_pad,
            kernel_shape=self.kernel_shape,
            p=whole(self.p),
            pads=self.pads,
            strides=self.strides,
        )


def whole(p: float) -> int:
    """The exponent of a norm as the whole number that newer versions take.

    Raises:
        UnsupportedError: it is not one.
    """
    if p != int(p):
        raise UnsupportedError(f"p is {p}; newer versions take whole numbers only, and so do we")
    return int(p)
