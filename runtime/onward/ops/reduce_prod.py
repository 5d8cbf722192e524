from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, dtype_of, op
from onward.ops._reduction import AxesAttribute, AxesInput, Compiled


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return np.prod(data, axis=axes, keepdims=keepdims, dtype=data.dtype)


@op("ReduceProd", since=18)
class ReduceProd(AxesInput):
    """The product over axes."""

    compiled = Compiled("prod")

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        # The product of the other elements: with one zero it is at the zero alone, with two nowhere. What is
        # 0 by one factor is that factor's multiple, so that the gradient of the gradient holds too.
        zero = g.Equal(data, 0.0)
        zeros = self.again(g, "ReduceSum", g.Cast(zero, to=int(dtype_of(data))), axes)
        nonzero = g.Where(zero, 1.0, data)
        product = self.again(g, "ReduceProd", nonzero, axes)
        one, two = g.Equal(zeros, 1.0), g.Equal(zeros, 2.0)
        factors = self.again(g, "ReduceSum", g.Where(zero, data, 0.0), axes)
        at_zero = g.Where(one, product, g.Where(two, g.Mul(product, g.Sub(factors, data)), 0.0))
        others = g.Div(product, nonzero)
        elsewhere = g.Where(g.Equal(zeros, 0.0), others, g.Where(one, g.Mul(others, factors), 0.0))
        return g.Mul(self.spread(g, dy, axes), g.Where(zero, at_zero, elsewhere)), None


@op("ReduceProd", since=(1, 11, 13))
class ReduceProdAxesAttribute(AxesAttribute):
    """ReduceProd over axes that are an attribute."""
