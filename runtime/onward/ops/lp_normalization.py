from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import working_dtype


@op("LpNormalization", since=(1, 22))
class LpNormalization(Op):
    """output = input / (Σ |input|^p)^(1/p) along `axis`, p being 1 or 2; 0 where the norm is 0."""

    axis: int = -1
    p: int = 2

    def kernel(self, input: Array) -> Array:
        if self.p not in (1, 2):
            raise InvalidModelError(f"attribute 'p' of LpNormalization is {self.p}; it is 1 or 2")
        x = input.astype(working_dtype(input.dtype), copy=False)
        if self.p == 1:
            norm = np.sum(np.abs(x), axis=self.axis, keepdims=True)
        else:
            norm = np.sqrt(np.sum(np.square(x), axis=self.axis, keepdims=True))
        return np.where(norm == 0, norm, x / norm).astype(input.dtype, copy=False)

    def lower(self, static: Static, outputs: Values, input: ir.Value) -> requests.Body:
        return requests.Body()

    def expand(self, g: Builder, input: ir.Value) -> ir.Value:
        if self.p not in (1, 2):
            raise InvalidModelError(f"attribute 'p' of LpNormalization is {self.p}; it is 1 or 2")
        norm = (g.ReduceL1 if self.p == 1 else g.ReduceL2)(input, [self.axis], keepdims=1)
        return g.Where(g.Equal(norm, 0.0), norm, g.Div(input, norm))

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value | None, ...]:
        reduce = g.ReduceL1 if self.p == 1 else g.ReduceL2
        norm = reduce(input, [self.axis], keepdims=1)
        along = g.ReduceSum(g.Mul(dy, y), [self.axis], keepdims=1)
        slope = g.Sign(input) if self.p == 1 else y
        dx = g.Div(g.Sub(dy, g.Mul(slope, along)), norm)
        return (g.Where(g.Equal(norm, 0.0), 0.0, dx),)
