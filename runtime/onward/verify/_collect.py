"""Collects what several runs say about each tensor into one row a tensor."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import final

import numpy as np

from onward.verify.report import Kind, TensorRow
from onward.verify.tolerance import Tolerance, Tolerances, measure, tolerance_for

__all__ = ["Collector"]


@final
@dataclass(slots=True)
class Collector:
    """Rows by tensor; a tensor's row is the first run in which it failed, else the one that was worst.

    A run that differs by more than rounding comes before one that does not.
    """

    tolerance: Tolerances
    rows: dict[tuple[str, str], TensorRow] = field(default_factory=dict)

    def agree(self, ours: object, theirs: object, rounding: float = 0.0) -> bool:
        """Whether the engines agree on a tensor, where rounding alone moves it by so much."""
        allowed = tolerance_for(np.asarray(theirs).dtype, self.tolerance)
        return measure(ours, theirs, _wider(allowed, rounding)).ok

    def add(
        self, kind: Kind, name: str, step: int, ours: object, theirs: object, *, rounding: float = 0.0
    ) -> TensorRow:
        """Compare one tensor of one run.

        Args:
            kind, name, step: what the row says.
            ours, theirs: the tensor.
            rounding: by how much rounding alone moves it: a row that fails by no more says so.
        """
        array = np.asarray(theirs)
        tolerance = tolerance_for(array.dtype, self.tolerance)
        found = measure(ours, theirs, tolerance)
        row = TensorRow(
            name=name,
            kind=kind,
            dtype=str(array.dtype),
            shape=array.shape,
            max_abs=found.max_abs,
            max_rel=found.max_rel,
            tolerance=tolerance,
            ok=found.ok,
            step=step,
            note=found.note,
            rounding=not found.ok and self.agree(ours, theirs, rounding),
        )
        old = self.rows.get((kind, name))
        if old is None or _worse(row, old):
            self.rows[kind, name] = row
        return row


def _wider(tolerance: Tolerance, rounding: float) -> Tolerance:
    return dataclasses.replace(tolerance, absolute=tolerance.absolute + rounding)


def _worse(row: TensorRow, old: TensorRow) -> bool:
    rank = [0 if r.ok else 1 if r.rounding else 2 for r in (row, old)]
    return rank[0] > rank[1] or (rank == [0, 0] and row.max_abs > old.max_abs)
