from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._training import scalar, update_all, update_each


@op("Adagrad", since=1, domain="ai.onnx.preview.training")
class Adagrad(Op):
    """H += G²; X −= R / (1 + T · decay_factor) · G / (√H + epsilon), G with norm_coefficient · X added."""

    decay_factor: float = 0.0
    epsilon: float = 1e-6
    norm_coefficient: float = 0.0

    def kernel(self, R: Array, T: Array, *inputs: Array) -> tuple[Array, ...]:
        rate = R / (1 + T * self.decay_factor)

        def update(X: Array, G: Array, H: Array) -> tuple[Array, ...]:
            G = G + self.norm_coefficient * X
            H = H + G * G
            return X - rate * G / (np.sqrt(H) + self.epsilon), H

        return update_all(update, 3, inputs)

    def lower(
        self, static: Static, outputs: Values, R: ir.Value, T: ir.Value, *inputs: ir.Value
    ) -> requests.Body:
        return requests.Body()

    def expand(self, g: Builder, R: ir.Value, T: ir.Value, *inputs: ir.Value) -> tuple[ir.Value, ...]:
        steps = g.Cast(scalar(g, T), to=int(dtype_of(R)))
        rate = g.Div(scalar(g, R), g.Add(g.Mul(steps, self.decay_factor), 1.0))

        def update(X: ir.Value, G: ir.Value, H: ir.Value) -> tuple[ir.Value, ...]:
            G = g.Add(G, g.Mul(X, self.norm_coefficient))
            H = g.Add(H, g.Mul(G, G))
            return g.Sub(X, g.Div(g.Mul(G, rate), g.Add(g.Sqrt(H), self.epsilon))), H

        return update_each(update, 3, inputs)
