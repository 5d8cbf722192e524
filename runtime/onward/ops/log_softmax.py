from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._floats import widened
from onward.ops._shape import over_trailing_axes


@op("LogSoftmax", since=13)
class LogSoftmax(Op):
    """input - log Σ exp(input), the sum over one axis."""

    axis: int = -1

    @widened
    def kernel(self, input: Array) -> Array:
        return log_softmax(input, self.axis)

    def lower(self, static: Static, outputs: Values, input: ir.Value) -> requests.Softmax:
        return requests.Softmax(outputs[0], input, (self.axis,), logarithm=True)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        share = g.ReduceSum(dy, [self.axis], keepdims=1)
        return (g.Sub(dy, g.Mul(g.Exp(y), share)),)


@op("LogSoftmax", since=(1, 11))
class LogSoftmax1(Op):
    """LogSoftmax over all axes from `axis` on."""

    axis: int = 1

    def canonical(self, g: Builder, input: ir.Value) -> ir.Value:
        return over_trailing_axes(g, "LogSoftmax", input, self.axis)


def log_softmax(x: Array, axis: int) -> Array:
    """x - log Σ exp(x), the sum over one axis."""
    shifted = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
