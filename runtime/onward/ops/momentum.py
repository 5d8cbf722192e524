from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._training import later, scalar, update_all, update_each


@op("Momentum", since=1, domain="ai.onnx.preview.training")
class Momentum(Op):
    """V = alpha · V + beta · G, beta 1 where T is 0; X −= R · V, or R · (G + alpha · V) in mode nesterov."""

    alpha: float
    beta: float
    mode: str
    norm_coefficient: float

    def kernel(self, R: Array, T: Array, *inputs: Array) -> tuple[Array, ...]:
        if self.mode not in ("standard", "nesterov"):
            raise UnsupportedError(f"mode {self.mode!r}: choose standard or nesterov")
        beta = self.beta if int(T.reshape(-1)[0]) > 0 else 1.0

        def update(X: Array, G: Array, V: Array) -> tuple[Array, ...]:
            G = G + self.norm_coefficient * X
            V = self.alpha * V + beta * G
            return X - R * (G + self.alpha * V if self.mode == "nesterov" else V), V

        return update_all(update, 3, inputs)

    def lower(
        self, static: Static, outputs: Values, R: ir.Value, T: ir.Value, *inputs: ir.Value
    ) -> requests.Body | requests.Unsupported:
        if self.mode not in ("standard", "nesterov"):
            return requests.Unsupported(f"mode {self.mode!r}")
        return requests.Body()

    def expand(self, g: Builder, R: ir.Value, T: ir.Value, *inputs: ir.Value) -> tuple[ir.Value, ...]:
        rate, beta = scalar(g, R), g.Where(later(g, T), self.beta, g.const(1, R.dtype))

        def update(X: ir.Value, G: ir.Value, V: ir.Value) -> tuple[ir.Value, ...]:
            G = g.Add(G, g.Mul(X, self.norm_coefficient))
            V = g.Add(g.Mul(V, self.alpha), g.Mul(G, beta))
            step = g.Add(G, g.Mul(V, self.alpha)) if self.mode == "nesterov" else V
            return g.Sub(X, g.Mul(step, rate)), V

        return update_each(update, 3, inputs)
