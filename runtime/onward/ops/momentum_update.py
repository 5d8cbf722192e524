from __future__ import annotations

import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Expression, Op, op
from onward.ops._update import Types, like


@op("MomentumUpdate", domain=ONWARD_DOMAIN, since=1, multiple_outputs=True)
class MomentumUpdate(Op):
    """V' = momentum V + d and P' = P − learning_rate V', with d = G + weight_decay P.

    Nesterov takes d + momentum V' in the place of V'.

    Source: I. Sutskever et al., "On the importance of initialization and momentum in deep learning",
    ICML 2013, in the form where the learning rate multiplies the velocity.
    """

    momentum: float
    nesterov: int = 0
    weight_decay: float = 0.0

    refuses_data = False

    def kernel(self, P: Array, G: Array, V: Array, learning_rate: Array) -> tuple[Array, Array]:
        t = P.dtype.type
        d = G + t(self.weight_decay) * P if self.weight_decay else G
        velocity = t(self.momentum) * V + d
        direction = d + t(self.momentum) * velocity if self.nesterov else velocity
        return P - t(learning_rate) * direction, velocity

    def element(
        self, P: Expression, G: Expression, V: Expression, learning_rate: Expression
    ) -> tuple[Expression, Expression]:
        d = G + P * self.weight_decay if self.weight_decay else G
        velocity = V * self.momentum + d
        direction = d + velocity * self.momentum if self.nesterov else velocity
        return P - learning_rate * direction, velocity

    def infer(self, P: ir.Value, G: ir.Value, V: ir.Value, learning_rate: ir.Value) -> Types:
        return like(P, V)

    def expand(
        self, g: Builder, P: ir.Value, G: ir.Value, V: ir.Value, learning_rate: ir.Value
    ) -> tuple[ir.Value, ...]:
        d = g.Add(G, g.Mul(P, self.weight_decay)) if self.weight_decay else G
        velocity = g.Add(g.Mul(V, self.momentum), d)
        direction = g.Add(d, g.Mul(velocity, self.momentum)) if self.nesterov else velocity
        return g.Sub(P, g.Mul(direction, learning_rate)), velocity
