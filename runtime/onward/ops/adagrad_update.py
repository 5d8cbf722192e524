from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Expression, Op, op
from onward.ops._update import Types, like


@op("AdagradUpdate", domain=ONWARD_DOMAIN, since=1, multiple_outputs=True)
class AdagradUpdate(Op):
    """S' = S + d² and P' = P − η d / (√S' + ε), with d = G + weight_decay P. With inner_epsilon=1
    the denominator is √(S' + ε).

    Source: J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization", JMLR 12, 2011, the diagonal form.
    """

    epsilon: float
    weight_decay: float = 0.0
    inner_epsilon: int = 0

    refuses_data = False

    def kernel(self, P: Array, G: Array, S: Array, learning_rate: Array) -> tuple[Array, Array]:
        t = P.dtype.type
        d = G + t(self.weight_decay) * P if self.weight_decay else G
        square = S + d * d
        epsilon = t(self.epsilon)
        denominator = np.sqrt(square + epsilon) if self.inner_epsilon else np.sqrt(square) + epsilon
        return P - t(learning_rate) * (d / denominator), square

    def element(
        self, P: Expression, G: Expression, S: Expression, learning_rate: Expression
    ) -> tuple[Expression, Expression]:
        d = G + P * self.weight_decay if self.weight_decay else G
        square = S + d * d
        inner = (square + self.epsilon).apply("sqrt")
        denominator = inner if self.inner_epsilon else square.apply("sqrt") + self.epsilon
        return P - learning_rate * (d / denominator), square

    def infer(self, P: ir.Value, G: ir.Value, S: ir.Value, learning_rate: ir.Value) -> Types:
        return like(P, S)

    def expand(
        self, g: Builder, P: ir.Value, G: ir.Value, S: ir.Value, learning_rate: ir.Value
    ) -> tuple[ir.Value, ...]:
        d = g.Add(G, g.Mul(P, self.weight_decay)) if self.weight_decay else G
        square = g.Add(S, g.Mul(d, d))
        denominator = (
            g.Sqrt(g.Add(square, self.epsilon)) if self.inner_epsilon else g.Add(g.Sqrt(square), self.epsilon)
        )
        step = g.Div(d, denominator)
        return g.Sub(P, g.Mul(step, learning_rate)), square
