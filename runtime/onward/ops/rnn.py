from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onward.graph import Array, op
from onward.ops._recurrent import Activation, Earlier, HiddenState, Weights


@dataclass(frozen=True, kw_only=True)
class _Simple(HiddenState):
    """What the versions share."""

    gates: ClassVar[int] = 1
    activations: tuple[str, ...] = ("Tanh", "Tanh")

    def cell(
        self, activations: Sequence[Activation], x: Array, states: tuple[Array, ...], w: Weights
    ) -> tuple[Array, ...]:
        return (activations[0](x + states[0] @ w.R.T + (w.Wb + w.Rb)),)


@op("RNN", since=(7, 14, 22), multiple_outputs=True)
class RNN(_Simple):
    """Ht = f(Xt·Wᵀ + Ht₋₁·Rᵀ + Wb + Rb)."""

    layout: int = 0


@op("RNN", since=1, multiple_outputs=True)
class RNN1(Earlier):
    """RNN that says whether its first output is wanted."""

    activations: tuple[str, ...] | None = ("Tanh", "Tanh")
