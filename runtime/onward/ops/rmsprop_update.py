from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Expression, Op, op
from onward.ops._update import Types, like


@op("RMSpropUpdate", domain=ONWARD_DOMAIN, since=1, multiple_outputs=True)
class RMSpropUpdate(Op):
    """S' = α S + (1 − α) d², V' = momentum V + d / (√S' + ε), P' = P − η V', with d = G + weight_decay P.
    With inner_epsilon=1 the denominator is √(S' + ε).

    Source: T. Tieleman, G. Hinton, "Lecture 6.5: rmsprop", Coursera, 2012; with momentum as in A. Graves,
    "Generating sequences with recurrent neural networks", 2013.
    """

    alpha: float
    epsilon: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    inner_epsilon: int = 0

    refuses_data = False

    def kernel(
        self, P: Array, G: Array, S: Array, V: Array, learning_rate: Array
    ) -> tuple[Array, Array, Array]:
        t = P.dtype.type
        d = G + t(self.weight_decay) * P if self.weight_decay else G
        square = t(self.alpha) * S + t(1 - self.alpha) * (d * d)
        epsilon = t(self.epsilon)
        denominator = np.sqrt(square + epsilon) if self.inner_epsilon else np.sqrt(square) + epsilon
        velocity = t(self.momentum) * V + d / denominator
        return P - t(learning_rate) * velocity, square, velocity

    def element(
        self, P: Expression, G: Expression, S: Expression, V: Expression, learning_rate: Expression
    ) -> tuple[Expression, Expression, Expression]:
        d = G + P * self.weight_decay if self.weight_decay else G
        square = S * self.alpha + (d * d) * (1 - self.alpha)
        inner = (square + self.epsilon).apply("sqrt")
        denominator = inner if self.inner_epsilon else square.apply("sqrt") + self.epsilon
        velocity = V * self.momentum + d / denominator
        return P - learning_rate * velocity, square, velocity

    def infer(self, P: ir.Value, G: ir.Value, S: ir.Value, V: ir.Value, learning_rate: ir.Value) -> Types:
        return like(P, S, V)

    def expand(
        self, g: Builder, P: ir.Value, G: ir.Value, S: ir.Value, V: ir.Value, learning_rate: ir.Value
    ) -> tuple[ir.Value, ...]:
        d = g.Add(G, g.Mul(P, self.weight_decay)) if self.weight_decay else G
        square = g.Add(g.Mul(S, self.alpha), g.Mul(g.Mul(d, d), 1 - self.alpha))
        denominator = (
            g.Sqrt(g.Add(square, self.epsilon)) if self.inner_epsilon else g.Add(g.Sqrt(square), self.epsilon)
        )
        velocity = g.Add(g.Mul(V, self.momentum), g.Div(d, denominator))
        return g.Sub(P, g.Mul(velocity, learning_rate)), square, velocity
