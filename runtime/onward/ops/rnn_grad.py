from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from onward.graph import ONWARD_DOMAIN, Array, attributes_of, op
from onward.ops._recurrent import Activation, Weights
from onward.ops._recurrent_grad import CellGradient, HiddenStateGrad
from onward.ops.rnn import RNN


@op("RNNGrad", since=1, domain=ONWARD_DOMAIN, multiple_outputs=True)
class RNNGrad(HiddenStateGrad):
    """Gradients of RNN by its operands, from those of its results; the states are computed again.

    With h̃t = Xt·Wᵀ + Ht₋₁·Rᵀ + b: dh̃t = dHt ⊙ f′(h̃t), dHt₋₁ = dh̃t · R, dXt = dh̃t · W, dW = Σ dh̃tᵀ · Xt,
    dR = Σ dh̃tᵀ · Ht₋₁, and dB = Σ dh̃t for both biases.
    """

    gates: ClassVar[int] = 1
    activations: tuple[str, ...] = ("Tanh", "Tanh")
    layout: int = 0

    def forward(self) -> RNN:
        return RNN(**attributes_of(self))

    def cell_gradient(
        self,
        activations: Sequence[Activation],
        x: Array,
        states: tuple[Array, ...],
        w: Weights,
        d: tuple[Array, ...],
    ) -> CellGradient:
        (H,) = states
        dx = d[0] * activations[0].slope(x + H @ w.R.T + (w.Wb + w.Rb))
        return CellGradient(dx, (dx @ w.R,), dx.T @ H, dx.sum(0))
