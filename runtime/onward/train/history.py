"""What a run measured, epoch by epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from onward.charts import Chart, history_charts

__all__ = ["History"]


@final
@dataclass
class History:
    """One row an epoch: `epoch` from 1, `learning_rate`, `loss`, metrics, and `val_…` for validation.

    Rows hold what the computation gives and no wall-clock times: two equal runs have equal histories.
    """

    rows: list[dict[str, float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Mapping[str, float]]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> list[float]:
        """The figures of one name over the epochs that have it."""
        found = [row[name] for row in self.rows if name in row]
        if not found:
            raise KeyError(f"{name!r} is not in the history; there are {', '.join(self.names())}")
        return found

    def names(self) -> tuple[str, ...]:
        """Every figure's name, in the order of appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def to_csv(self) -> str:
        """The history as CSV text with a header; a figure that an epoch lacks is empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.names(), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def plot(self) -> Chart:
        """Each figure over the epochs, training beside validation: a notebook shows it, `save` keeps it."""
        return Chart("Epoch by epoch", "".join(history_charts(self.rows)))

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> History:
        """A history from plain rows."""
        return cls([{k: int(v) if k == "epoch" else float(v) for k, v in row.items()} for row in rows])
