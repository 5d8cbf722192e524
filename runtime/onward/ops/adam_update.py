from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Expression, Op, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._shape import require_shape
from onward.ops._update import Types, like


@op("AdamUpdate", domain=ONWARD_DOMAIN, since=1, multiple_outputs=True)
class AdamUpdate(Op):
    """M' = β1 M + (1 − β1) G; V' = β2 V + (1 − β2) G²;
    P' = P − η m / (√v + ε), m = M' / (1 − β1^t), v = V' / (1 − β2^t).

    t is the int64 number of this update, from 1; η is learning_rate. weight_decay adds to G, or with
    decoupled=1 first shrinks P by 1 − η weight_decay. With inner_epsilon=1 the denominator is
    (√V' + ε) / √(1 − β2^t): the order of computation at the end of section 2 of the paper, whose ε̂ is this ε.

    Sources: D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1;
    I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.
    """

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float = 0.0
    decoupled: int = 0
    inner_epsilon: int = 0

    refuses_data = False

    def kernel(
        self, P: Array, G: Array, M: Array, V: Array, learning_rate: Array, t: Array
    ) -> tuple[Array, Array, Array]:
        for name, array in (("G", G), ("M", M), ("V", V)):
            require_shape(name, array, P.shape)
        f = P.dtype.type
        rate, time = f(learning_rate), f(t)
        if self.weight_decay and not self.decoupled:
            G = G + f(self.weight_decay) * P
        elif self.weight_decay:
            P = P * (f(1) - rate * f(self.weight_decay))
        first = f(self.beta1) * M + f(1 - self.beta1) * G
        second = f(self.beta2) * V + f(1 - self.beta2) * (G * G)
        scale1 = f(1) - np.power(f(self.beta1), time)
        scale2 = f(1) - np.power(f(self.beta2), time)
        root, epsilon = np.sqrt(scale2), f(self.epsilon)
        denominator = (
            (np.sqrt(second) + epsilon) / root if self.inner_epsilon else np.sqrt(second) / root + epsilon
        )
        return P - (rate / scale1) * first / denominator, first, second

    def lower(
        self,
        static: Static,
        outputs: Values,
        P: ir.Value,
        G: ir.Value,
        M: ir.Value,
        V: ir.Value,
        learning_rate: ir.Value,
        t: ir.Value,
    ) -> requests.AdamUpdate:
        b1, b2 = self.beta1, self.beta2
        return requests.AdamUpdate(
            outputs, (P, G, M, V), learning_rate, t, b1, b2, self.weight_decay, self._element
        )

    def _element(
        self,
        P: Expression,
        G: Expression,
        M: Expression,
        V: Expression,
        rate: Expression,
        root: Expression,
        shrink: Expression,
    ) -> tuple[Expression, Expression, Expression]:
        if self.weight_decay and not self.decoupled:
            G = G + P * self.weight_decay
        elif self.weight_decay:
            P = P * shrink
        first = M * self.beta1 + G * (1 - self.beta1)
        second = V * self.beta2 + G * G * (1 - self.beta2)
        size = second.apply("sqrt")
        denominator = (size + self.epsilon) / root if self.inner_epsilon else size / root + self.epsilon
        return P - rate * first / denominator, first, second

    def infer(
        self, P: ir.Value, G: ir.Value, M: ir.Value, V: ir.Value, learning_rate: ir.Value, t: ir.Value
    ) -> Types:
        return like(P, M, V)

    def expand(
        self,
        g: Builder,
        P: ir.Value,
        G: ir.Value,
        M: ir.Value,
        V: ir.Value,
        learning_rate: ir.Value,
        t: ir.Value,
    ) -> tuple[ir.Value, ...]:
        time = g.Cast(t, to=int(dtype_of(P)))
        if self.weight_decay and not self.decoupled:
            G = g.Add(G, g.Mul(P, self.weight_decay))
        elif self.weight_decay:
            P = g.Mul(P, g.Sub(1.0, g.Mul(learning_rate, self.weight_decay)))
        first = g.Add(g.Mul(M, self.beta1), g.Mul(G, 1 - self.beta1))
        second = g.Add(g.Mul(V, self.beta2), g.Mul(g.Mul(G, G), 1 - self.beta2))
        scale1 = g.Sub(1.0, g.Pow(g.const(self.beta1, dtype_of(P)), time))
        scale2 = g.Sub(1.0, g.Pow(g.const(self.beta2, dtype_of(P)), time))
        size, root = g.Sqrt(second), g.Sqrt(scale2)
        denominator = (
            g.Div(g.Add(size, self.epsilon), root)
            if self.inner_epsilon
            else g.Add(g.Div(size, root), self.epsilon)
        )
        return g.Sub(P, g.Div(g.Mul(first, g.Div(learning_rate, scale1)), denominator)), first, second
