from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened
from onward.ops.erf import erf

_ROOT_HALF = 1 / math.sqrt(2.0)
_ROOT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_CUBIC = 0.044715


@op("Gelu", since=20)
class Gelu(Op):
    """Y = X · Φ(X), Φ the standard normal distribution; `tanh` approximates it.

    Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv:1606.08415.
    """

    approximate: str = "none"

    @widened
    def kernel(self, X: Array) -> Array:
        if self.approximate == "tanh":
            return 0.5 * X * (1 + np.tanh(_ROOT_2_OVER_PI * (X + _CUBIC * (X * X * X))))
        return 0.5 * X * (1 + erf(X * _ROOT_HALF))

    def element(self, X: Expression) -> Expression:
        if self.approximate == "tanh":
            inner = (X + X * X * X * _CUBIC) * _ROOT_2_OVER_PI
            return X * 0.5 * (inner.apply("tanh") + 1.0)
        return X * 0.5 * ((X * _ROOT_HALF).apply("erf") + 1.0)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[ir.Value, ...]:
        square = g.Mul(X, X)
        if self.approximate == "tanh":
            inner = g.Mul(g.Mul(X, _ROOT_2_OVER_PI), g.Add(g.Mul(square, _CUBIC), 1.0))
            t = g.Tanh(inner)
            inner_slope = g.Mul(g.Add(g.Mul(square, 3 * _CUBIC), 1.0), _ROOT_2_OVER_PI)
            bend = g.Mul(g.Mul(X, 0.5), g.Mul(g.Sub(1.0, g.Mul(t, t)), inner_slope))
            return (g.Mul(dy, g.Add(g.Mul(g.Add(t, 1.0), 0.5), bend)),)
        cumulative = g.Mul(g.Add(g.Erf(g.Mul(X, _ROOT_HALF)), 1.0), 0.5)
        density = g.Mul(g.Exp(g.Mul(square, -0.5)), 1 / math.sqrt(2 * math.pi))
        return (g.Mul(dy, g.Add(cumulative, g.Mul(X, density))),)
