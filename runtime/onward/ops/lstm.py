from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onward.graph import Array, op
from onward.ops._recurrent import Activation, Earlier, Recurrent, Weights


@dataclass(frozen=True, kw_only=True)
class _LongShortTerm(Recurrent):
    """What the versions share."""

    gates: ClassVar[int] = 4
    input_forget: int = 0

    def kernel(
        self,
        X: Array,
        W: Array,
        R: Array,
        B: Array | None = None,
        sequence_lens: Array | None = None,
        initial_h: Array | None = None,
        initial_c: Array | None = None,
        P: Array | None = None,
    ) -> tuple[Array, ...]:
        return self.run(X, W, R, B, sequence_lens, (initial_h, initial_c), P)

    def cell(
        self, activations: Sequence[Activation], x: Array, states: tuple[Array, ...], w: Weights
    ) -> tuple[Array, ...]:
        f, g, h = activations
        H, C = states
        i, o, forget, c = np.split(x + H @ w.R.T + (w.Wb + w.Rb), 4, axis=-1)
        Pi, Po, Pf = (0, 0, 0) if w.P is None else np.split(w.P, 3)
        i = f(i + Pi * C)
        forget = 1 - i if self.input_forget else f(forget + Pf * C)
        C = forget * C + i * g(c)
        return f(o + Po * C) * h(C), C


@op("LSTM", since=(7, 14, 22), multiple_outputs=True)
class LSTM(_LongShortTerm):
    """Ct = ft ⊙ Ct₋₁ + it ⊙ g(Xt·Wcᵀ + Ht₋₁·Rcᵀ + b), Ht = ot ⊙ h(Ct); i, o and f are gates of activation f.

    i and f see P ⊙ Ct₋₁, o sees P ⊙ Ct; with input_forget ft = 1 − it. Gates lie in the order i, o, f, c.
    """

    layout: int = 0


@op("LSTM", since=1, multiple_outputs=True)
class LSTM1(Earlier):
    """LSTM that says whether its first output is wanted."""

    input_forget: int = 0
