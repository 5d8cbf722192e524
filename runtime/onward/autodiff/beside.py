"""State beside parameters that is not the optimizer's: averages over updates, and masks of what is pruned."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, final

import numpy as np
import onnx_ir as ir

from onward.autodiff.update import State
from onward.graph import Builder, dtype_of

__all__ = ["Average", "Averages", "Masks"]


class Average(Protocol):
    """How weights are averaged over updates."""

    def share(self, g: Builder, count: ir.Value) -> ir.Value | None:
        """Write the share of the new weights in the average, a float32 scalar in [0, 1].

        Args:
            g: writes into the step.
            count: the number of weights averaged before, a float32 scalar; where it is 0 the share must be 1.

        Returns:
            The share; None: a step leaves averages as they are, and whoever runs it replaces them.
        """


@final
class Averages:
    """Averages of parameters and running statistics: a + share (w − a), and how many weights are in them.

    Args:
        g: writes into the step.
        state: of the step.
        rule: says the share of new weights.
        apply: whether this step updates; None: each does.

    Attributes:
        names: by parameter or running statistic, the state that is its average.
        count: the state that counts.
    """

    def __init__(self, g: Builder, state: State, rule: Average, apply: ir.Value | None) -> None:
        self._g, self._state = g, state
        held = g.initializer(g.unique("averaged", scoped=False), np.zeros((), np.float32))
        self.names: dict[str, str] = {}
        self.count = held.name or ""
        self._shares: dict[ir.DataType, ir.Value] = {}
        share = rule.share(g, held)
        if share is None:
            state.bind(held, held)
            return
        if apply is not None:
            share = g.Where(apply, share, 0.0)
        one = g.const(1.0, ir.DataType.FLOAT)
        state.bind(held, g.Add(held, one if apply is None else g.Cast(apply, to=int(ir.DataType.FLOAT))))
        self._shares[ir.DataType.FLOAT] = share

    def add(self, value: ir.Value, new: ir.Value) -> None:
        """Average a state input, of which this step makes `new`."""
        g, name, kind = self._g, value.name or "", dtype_of(value)
        held = self._state.slot(f"{name}.average", value, 0.0)
        self.names[name] = held.name or ""
        if not self._shares:
            self._state.bind(held, held)
            return
        if kind not in self._shares:
            self._shares[kind] = g.Cast(self._shares[ir.DataType.FLOAT], to=int(kind))
        self._state.bind(held, g.Add(held, g.Mul(self._shares[kind], g.Sub(new, held))))


@final
class Masks:
    """Which elements of parameters stay 0: those whose mask, of the parameter's type, is 0; else it is 1.

    Steps leave masks as they are.

    Attributes:
        names: by parameter the state that is its mask.
    """

    def __init__(self, g: Builder, state: State, masked: Collection[str]) -> None:
        self._g, self._state, self._masked = g, state, frozenset(masked)
        self.names: dict[str, str] = {}

    def applied(self, parameter: ir.Value, new: ir.Value) -> ir.Value:
        """The new parameter, with 0 where it is pruned."""
        name = parameter.name or ""
        if name not in self._masked:
            return new
        mask = self._state.slot(f"{name}.mask", parameter, 1.0)
        self.names[name] = mask.name or ""
        self._state.bind(mask, mask)
        return self._g.Where(self._g.Greater(mask, 0.0), new, 0.0)
