from __future__ import annotations

import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Expression, Op, op
from onward.ops._update import Types, like


@op("SGDUpdate", domain=ONWARD_DOMAIN, since=1)
class SGDUpdate(Op):
    """P' = P − learning_rate (G + weight_decay P)."""

    weight_decay: float = 0.0

    refuses_data = False

    def kernel(self, P: Array, G: Array, learning_rate: Array) -> Array:
        t = P.dtype.type
        return P - t(learning_rate) * (G + t(self.weight_decay) * P if self.weight_decay else G)

    def element(self, P: Expression, G: Expression, learning_rate: Expression) -> Expression:
        return P - learning_rate * (G + P * self.weight_decay if self.weight_decay else G)

    def infer(self, P: ir.Value, G: ir.Value, learning_rate: ir.Value) -> Types:
        return like(P)

    def expand(self, g: Builder, P: ir.Value, G: ir.Value, learning_rate: ir.Value) -> ir.Value:
        decayed = g.Add(G, g.Mul(P, self.weight_decay)) if self.weight_decay else G
        return g.Sub(P, g.Mul(decayed, learning_rate))
