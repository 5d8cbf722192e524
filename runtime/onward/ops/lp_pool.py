from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Dim, Op, dims_of, dtype_of, op
from onward.ops._convolution import working_dtype
from onward.ops._pooling import spread, window_sum
from onward.ops._window import Window, resolve, shaped_like


@op("LpPool", since=(18, 22))
class LpPool(Op):
    """Y = (Σ |X|^p)^(1/p) over each window; pads count as zeros."""

    auto_pad: str = "NOTSET"
    ceil_mode: int = 0
    dilations: tuple[int, ...] | None = None
    kernel_shape: tuple[int, ...]
    p: int = 2
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def window(self) -> Window:
        """The node's window."""
        return resolve(
            self.kernel_shape,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            auto_pad=self.auto_pad,
            ceil_mode=self.ceil_mode,
        )

    def kernel(self, X: Array) -> Array:
        work = working_dtype(X.dtype)
        powers = np.abs(X.astype(work, copy=False)) ** self.p
        sums = window_sum(powers, self.window().over(X.shape[2:]))
        return (sums ** work.type(1 / self.p)).astype(X.dtype, copy=False)

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


@op("LpPool", since=(2, 11))
class LpPool2(Op):
    """As version 18, without dilations and ceil_mode."""

    auto_pad: str = "NOTSET"
    kernel_shape: tuple[int, ...]
    p: int = 2
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def kernel(self, X: Array) -> Array:
        return LpPool(
            output_count=self.output_count,
            auto_pad=self.auto_pad,
            kernel_shape=self.kernel_shape,
            p=self.p,
            pads=self.pads,
            strides=self.strides,
        ).kernel(X)
