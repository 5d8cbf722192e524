from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from onward.graph import ONWARD_DOMAIN, Array, attributes_of, op
from onward.ops._recurrent import Activation, Weights
from onward.ops._recurrent_grad import CellGradient, HiddenStateGrad
from onward.ops.gru import GRU


@op("GRUGrad", since=1, domain=ONWARD_DOMAIN, multiple_outputs=True)
class GRUGrad(HiddenStateGrad):
    """Gradients of GRU by its operands, from those of its results; the states are computed again.

    With z̃, r̃, h̃ the sums before the activations: dh̃ = dHt ⊙ (1 − zt) ⊙ g′, dz̃ = dHt ⊙ (Ht₋₁ − ht) ⊙ f′, and
    dr̃ = (dh̃ · Rh) ⊙ Ht₋₁ ⊙ f′, or dh̃ ⊙ (Ht₋₁ · Rhᵀ + Rbh) ⊙ f′ with linear_before_reset; dHt₋₁ is the sum of
    dHt ⊙ zt and what comes back through the products with R.
    """

    gates: ClassVar[int] = 3
    linear_before_reset: int = 0
    layout: int = 0

    def forward(self) -> GRU:
        return GRU(**attributes_of(self))

    def cell_gradient(
        self,
        activations: Sequence[Activation],
        x: Array,
        states: tuple[Array, ...],
        w: Weights,
        d: tuple[Array, ...],
    ) -> CellGradient:
        f, g = activations
        (H,), (dH,) = states, d
        n = 2 * H.shape[-1]
        gates = x[:, :n] + H @ w.R[:n].T + (w.Wb[:n] + w.Rb[:n])
        z, r = np.split(f(gates), 2, axis=-1)
        z_slope, r_slope = np.split(f.slope(gates), 2, axis=-1)
        Rh, Rbh = w.R[n:], w.Rb[n:]
        linear = H @ Rh.T + Rbh if self.linear_before_reset else (r * H) @ Rh.T + Rbh
        h_ = x[:, n:] + (r * linear if self.linear_before_reset else linear) + w.Wb[n:]
        dh = dH * (1 - z) * g.slope(h_)
        d_linear = dh * r if self.linear_before_reset else dh
        back = d_linear @ Rh
        dr = (dh * linear if self.linear_before_reset else back * H) * r_slope
        dz = dH * (H - g(h_)) * z_slope
        d_gates = np.concatenate([dz, dr], axis=-1)
        before = dH * z + d_gates @ w.R[:n] + (back if self.linear_before_reset else back * r)
        dRh = d_linear.T @ (H if self.linear_before_reset else r * H)
        dR = np.concatenate([d_gates.T @ H, dRh])
        dRb = np.concatenate([d_gates.sum(0), d_linear.sum(0)])
        return CellGradient(np.concatenate([d_gates, dh], axis=-1), (before,), dR, dRb)
