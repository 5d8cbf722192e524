from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._training import later, scalar, update_all, update_each


@op("Adam", since=1, domain="ai.onnx.preview.training")
class Adam(Op):
    """Adam (Kingma and Ba, 2015); alpha and beta decay the two moments, which are corrected where T > 0."""

    alpha: float = 0.9
    beta: float = 0.999
    epsilon: float = 1e-6
    norm_coefficient: float = 0.0
    norm_coefficient_post: float = 0.0

    def kernel(self, R: Array, T: Array, *inputs: Array) -> tuple[Array, ...]:
        step = int(T.reshape(-1)[0])
        rate = R * np.sqrt(1 - self.beta**step) / (1 - self.alpha**step) if step > 0 else R

        def update(X: Array, G: Array, V: Array, H: Array) -> tuple[Array, ...]:
            G = G + self.norm_coefficient * X
            V = self.alpha * V + (1 - self.alpha) * G
            H = self.beta * H + (1 - self.beta) * G * G
            X = X - rate * V / (np.sqrt(H) + self.epsilon)
            return (1 - self.norm_coefficient_post) * X, V, H

        return update_all(update, 4, inputs)

    def lower(
        self, static: Static, outputs: Values, R: ir.Value, T: ir.Value, *inputs: ir.Value
    ) -> requests.Body:
        return requests.Body()

    def expand(self, g: Builder, R: ir.Value, T: ir.Value, *inputs: ir.Value) -> tuple[ir.Value, ...]:
        double, kind = ir.DataType.DOUBLE, int(dtype_of(R))
        steps = g.Cast(scalar(g, T), to=int(double))
        # what is left of 1 after so many decays: in float64, as it may be little
        first, second = (
            g.Sub(g.const(1, double), g.Exp(g.Mul(steps, math.log(rate)))) if rate > 0 else g.const(1, double)
            for rate in (self.alpha, self.beta)
        )
        corrected = g.Mul(scalar(g, R), g.Cast(g.Div(g.Sqrt(second), first), to=kind))
        rate = g.Where(later(g, T), corrected, scalar(g, R))

        def update(X: ir.Value, G: ir.Value, V: ir.Value, H: ir.Value) -> tuple[ir.Value, ...]:
            G = g.Add(G, g.Mul(X, self.norm_coefficient))
            V = g.Add(g.Mul(V, self.alpha), g.Mul(G, 1 - self.alpha))
            H = g.Add(g.Mul(H, self.beta), g.Mul(g.Mul(G, G), 1 - self.beta))
            X = g.Sub(X, g.Div(g.Mul(V, rate), g.Add(g.Sqrt(H), self.epsilon)))
            return g.Mul(X, 1 - self.norm_coefficient_post), V, H

        return update_each(update, 4, inputs)
