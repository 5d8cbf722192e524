from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, numpy_dtype, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import working_dtype
from onward.ops._local_response import channel_band, channel_sum, scale_base
from onward.ops._shape import require_shape


@op("LRNGrad", since=1, domain=ONWARD_DOMAIN)
class LRNGrad(Op):
    """dX = dY · base^−beta − 2 · alpha · beta / size · X · Σ dY · X · base^(−beta − 1), base as in LRN.

    The sum is over the channels that have this one among their `size` neighbours.
    """

    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0
    size: int

    def kernel(self, dY: Array, X: Array) -> Array:
        require_shape("dY", dY, X.shape)
        x = X.astype(working_dtype(X.dtype), copy=False)
        base = scale_base(x, self.size, self.alpha, self.bias)
        direct = dY * base ** x.dtype.type(-self.beta)
        sums = channel_sum(direct * x / base, self.size // 2, (self.size - 1) // 2)
        dX = direct - x.dtype.type(2 * self.alpha * self.beta / self.size) * x * sums
        return dX.astype(X.dtype, copy=False)

    def infer(self, dY: ir.Value, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(dtype_of(X), dims_of(X))]

    def expand(self, g: Builder, dY: ir.Value, X: ir.Value) -> ir.Value:
        dims = dims_of(X)
        channels = dims[1] if dims is not None else None
        if dims is None or not isinstance(channels, int):
            raise UnsupportedError("LRNGrad needs the channels of X to be written in standard operators")
        static = [d for d in dims[2:] if isinstance(d, int)]
        # -1 cannot stand beside a batch of 0
        flat = [0, 0, prod(static) if len(static) == len(dims) - 2 else -1]
        band = channel_band(channels, self.size, np.dtype(numpy_dtype(dtype_of(X))))
        x, dy = g.Reshape(X, flat), g.Reshape(dY, flat)
        sums = g.MatMul(g.const(band), g.Mul(x, x))
        base = g.Add(g.Mul(sums, self.alpha / self.size), self.bias)
        direct = g.Mul(dy, g.Pow(base, -self.beta))
        spread = g.MatMul(g.const(band.T), g.Div(g.Mul(direct, x), base))
        dx = g.Sub(direct, g.Mul(g.Mul(x, 2 * self.alpha * self.beta / self.size), spread))
        return g.reshape_like(dx, X)

    def lower(
        self, static: Static, outputs: Values, dY: ir.Value, X: ir.Value
    ) -> requests.LocalResponseGradient:
        return requests.LocalResponseGradient(outputs[0], dY, X, self.size, self.alpha, self.beta, self.bias)
