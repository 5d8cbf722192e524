from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op
from onward.ops._convolution import working_dtype
from onward.ops.lp_pool import whole


@op("GlobalLpPool", since=(2, 22))
class GlobalLpPool(Op):
    """Y[n, c] = (Σ |X[n, c, *]|^p)^(1/p) over all spatial axes, which are kept with extent 1."""

    p: int = 2

    def kernel(self, X: Array) -> Array:
        work = working_dtype(X.dtype)
        powers = np.abs(X.astype(work, copy=False)) ** self.p
        sums = np.sum(powers, axis=tuple(range(2, X.ndim)), keepdims=True, dtype=work)
        return (sums ** work.type(1 / self.p)).astype(X.dtype, copy=False)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value | None, ...]:
        if self.p == 1:
            return (g.Mul(g.Sign(X), dy),)
        # dY · Y^(1 − p), and 0 where every element is 0
        share = g.Where(g.Equal(y, 0.0), 0.0, g.Div(dy, g.Pow(y, float(self.p - 1))))
        return (g.Mul(g.Mul(g.Sign(X), g.Pow(g.Abs(X), float(self.p - 1))), share),)


@op("GlobalLpPool", since=1)
class GlobalLpPool1(Op):
    """GlobalLpPool whose p is a float."""

    p: float = 2.0

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        return g.GlobalLpPool(X, p=whole(self.p))
