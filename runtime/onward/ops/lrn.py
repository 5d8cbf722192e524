from __future__ import annotations

import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import working_dtype
from onward.ops._local_response import scale_base


@op("LRN", since=(1, 13))
class LRN(Op):
    """Y = X / (bias + alpha / size · Σ X²)^beta, the sum over `size` neighbouring channels.

    Channel c's neighbours are c − floor((size − 1) / 2) to c + ceil((size − 1) / 2), those that exist.
    """

    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0
    size: int

    def kernel(self, X: Array) -> Array:
        self._check()
        x = X.astype(working_dtype(X.dtype), copy=False)
        base = scale_base(x, self.size, self.alpha, self.bias)
        return (x * base ** x.dtype.type(-self.beta)).astype(X.dtype, copy=False)

    def lower(self, static: Static, outputs: Values, X: ir.Value) -> requests.LocalResponse:
        self._check()
        return requests.LocalResponse(outputs[0], X, self.size, self.alpha, self.beta, self.bias)

    def _check(self) -> None:
        if self.size < 1:
            raise ShapeError(f"size is {self.size}: give at least 1")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value | None, ...]:
        return (g.onward.LRNGrad(dy, X, alpha=self.alpha, beta=self.beta, bias=self.bias, size=self.size),)
