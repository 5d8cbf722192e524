from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from onward.graph import ONWARD_DOMAIN, Array, attributes_of, op
from onward.ops._recurrent import Activation, Weights
from onward.ops._recurrent_grad import CellGradient, RecurrentGrad
from onward.ops.lstm import LSTM


@op("LSTMGrad", since=1, domain=ONWARD_DOMAIN, multiple_outputs=True)
class LSTMGrad(RecurrentGrad):
    """Gradients of LSTM by its operands, from those of its results; the states are computed again.

    With the gates' sums before their activations ĩ, õ, f̃, c̃ and dĩ … their gradients: dXt = Σ dg̃ · Wg,
    dHt₋₁ = Σ dg̃ · Rg, dW = Σ dg̃ᵀ · Xt, dR = Σ dg̃ᵀ · Ht₋₁, dB = Σ dg̃ over gates g, steps and the batch;
    dCt₋₁ = dCt ⊙ ft and what peepholes add. Source: Graves 2012, section 4.6.
    """

    gates: ClassVar[int] = 4
    states: ClassVar[int] = 2
    input_forget: int = 0
    layout: int = 0

    def forward(self) -> LSTM:
        return LSTM(**attributes_of(self))

    def kernel(
        self,
        dY: Array | None,
        dY_h: Array | None,
        dY_c: Array | None,
        X: Array,
        W: Array,
        R: Array,
        B: Array | None = None,
        sequence_lens: Array | None = None,
        initial_h: Array | None = None,
        initial_c: Array | None = None,
        P: Array | None = None,
    ) -> tuple[Array, ...]:
        return self.run(dY, (dY_h, dY_c), X, W, R, B, sequence_lens, (initial_h, initial_c), P)

    def cell_gradient(
        self,
        activations: Sequence[Activation],
        x: Array,
        states: tuple[Array, ...],
        w: Weights,
        d: tuple[Array, ...],
    ) -> CellGradient:
        f, g, h = activations
        (H, C), (dH, dC) = states, d
        i_, o_, f_, c_ = np.split(x + H @ w.R.T + (w.Wb + w.Rb), 4, axis=-1)
        Pi, Po, Pf = (0, 0, 0) if w.P is None else np.split(w.P, 3)
        i_, f_ = i_ + Pi * C, f_ + Pf * C
        i = f(i_)
        forget = 1 - i if self.input_forget else f(f_)
        new = forget * C + i * g(c_)
        o_ = o_ + Po * new
        do = dH * h(new) * f.slope(o_)
        dC = dC + dH * f(o_) * h.slope(new) + do * Po
        d_forget = dC * C
        df = np.zeros_like(dC) if self.input_forget else d_forget * f.slope(f_)
        di = (dC * g(c_) - d_forget if self.input_forget else dC * g(c_)) * f.slope(i_)
        dx = np.concatenate([di, do, df, dC * i * g.slope(c_)], axis=-1)
        before = (dx @ w.R, dC * forget + di * Pi + df * Pf)
        dP = np.concatenate([(di * C).sum(0), (do * new).sum(0), (df * C).sum(0)])
        return CellGradient(dx, before, dx.T @ H, dx.sum(0), dP)
