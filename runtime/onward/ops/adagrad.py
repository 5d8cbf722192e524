from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op
from onward.ops._training import update_all


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
