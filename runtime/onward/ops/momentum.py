from __future__ import annotations

from onward.errors import UnsupportedError
from onward.graph import Array, Op, op
from onward.ops._training import update_all


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
