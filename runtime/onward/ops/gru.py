from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onward.graph import Array, op
from onward.ops._recurrent import Activation, Earlier, HiddenState, Weights


@dataclass(frozen=True, kw_only=True)
class _GatedUnit(HiddenState):
    """What the versions share."""

    gates: ClassVar[int] = 3
    linear_before_reset: int = 0

    def cell(
        self, activations: Sequence[Activation], x: Array, states: tuple[Array, ...], w: Weights
    ) -> tuple[Array, ...]:
        f, g = activations
        (H,) = states
        n = 2 * H.shape[-1]
        z, r = np.split(f(x[:, :n] + H @ w.R[:n].T + (w.Wb[:n] + w.Rb[:n])), 2, axis=-1)
        Rh, Rbh = w.R[n:].T, w.Rb[n:]
        h = r * (H @ Rh + Rbh) if self.linear_before_reset else (r * H) @ Rh + Rbh
        return ((1 - z) * g(x[:, n:] + h + w.Wb[n:]) + z * H,)


@op("GRU", since=(7, 14, 22), multiple_outputs=True)
class GRU(_GatedUnit):
    """Ht = (1 − zt) ⊙ ht + zt ⊙ Ht₋₁, ht = g(Xt·Whᵀ + (rt ⊙ Ht₋₁)·Rhᵀ + b); gates z and r use f.

    With linear_before_reset rt multiplies Ht₋₁·Rhᵀ + Rbh instead. Gates lie in the order z, r, h.
    """

    layout: int = 0


@op("GRU", since=1, multiple_outputs=True)
class GRU1(Earlier):
    """GRU that says whether its first output is wanted."""

    direction: str = "foward"


@op("GRU", since=3, multiple_outputs=True)
class GRU3(Earlier):
    """GRU that says whether its first output is wanted."""

    linear_before_reset: int = 0
