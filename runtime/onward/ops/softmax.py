from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._floats import total
from onward.ops._shape import over_trailing_axes


@op("Softmax", since=13)
class Softmax(Op):
    """exp(input) / Σ exp(input), the sum over one axis.

    As in the standard's body, 2-byte floats are rounded after every step.
    """

    axis: int = -1

    def kernel(self, input: Array) -> Array:
        return softmax(input, self.axis)

    def lower(self, static: Static, outputs: Values, input: ir.Value) -> requests.Softmax | requests.Body:
        if dtype_of(input) in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            return requests.Body(rounds=True)
        return requests.Softmax(outputs[0], input, (self.axis,))

    def expand(self, g: Builder, input: ir.Value) -> ir.Value:
        """The standard's steps, each of which rounds 2-byte floats."""
        powers = g.Exp(g.Sub(input, g.ReduceMax(input, [self.axis], keepdims=1)))
        return g.Div(powers, g.ReduceSum(powers, [self.axis], keepdims=1))

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        weighted = g.Mul(dy, y)
        return (g.Sub(weighted, g.Mul(y, g.ReduceSum(weighted, [self.axis], keepdims=1))),)


@op("Softmax", since=(1, 11))
class Softmax1(Op):
    """Softmax over all axes from `axis` on."""

    axis: int = 1

    def canonical(self, g: Builder, input: ir.Value) -> ir.Value:
        return over_trailing_axes(g, "Softmax", input, self.axis)


def softmax(x: Array, axis: int) -> Array:
    """exp(x) / Σ exp(x), the sum over one axis."""
    e = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return e / total(e, (axis,), keepdims=True)
