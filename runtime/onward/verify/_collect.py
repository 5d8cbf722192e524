"""Collects what several runs say about each tensor into one row a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import numpy as np

from onward.verify.report import Kind, TensorRow
from onward.verify.tolerance import Tolerances, measure, tolerance_for

__all__ = ["Collector"]


@final
@dataclass(slots=True)
class Collector:
    """Rows by tensor; a tensor's row is the first run in which it failed, else the one that was worst."""

    tolerance: Tolerances
    rows: dict[tuple[str, str], TensorRow] = field(default_factory=dict)

    def add(self, kind: Kind, name: str, step: int, ours: object, theirs: object) -> bool:
        """Compare one tensor of one run; returns whether the engines agree on it."""
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
        )
        old = self.rows.get((kind, name))
        if old is None or (old.ok and (not row.ok or row.max_abs > old.max_abs)):
            self.rows[kind, name] = row
        return found.ok
