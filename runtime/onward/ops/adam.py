from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op
from onward.ops._training import update_all


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
