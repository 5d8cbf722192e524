"""Rows of results: kept as JSON, shown as tables."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.suite.cases import INFERENCE_EACH, INFERENCE_MEAN, Kind
from rich.console import Console
from rich.table import Table

__all__ = ["LATEST", "Row", "geometric_mean", "load", "merge", "missed", "save", "show"]

LATEST = Path(__file__).parents[1] / "results" / "latest.json"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        kind: "training" or "inference".
        name: of the network.
        batch: samples a step.
        peer: "torch" or "onnxruntime".
        ours_s, peer_s: median seconds of a step; None where one side cannot run it.
        ratio: ours_s / peer_s.
        goal: for the ratio, at most; None where there is none.
        ours_min_s, peer_min_s: least seconds of a step.
        mode: how the peer ran, and how long its other modes took.
        note: why something is missing, or which operators of ours are not compiled.
        threads: on each side.
        clock: "wall" or "processor" time.
    """

    kind: Kind
    name: str
    batch: int
    peer: str
    ours_s: float | None
    peer_s: float | None
    ratio: float | None
    goal: float | None
    ours_min_s: float | None = None
    peer_min_s: float | None = None
    mode: str = ""
    note: str = ""
    threads: int = 2
    clock: str = "wall"

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What a newer row of the same measurement replaces."""
        return self.kind, self.name, self.batch, self.peer


def missed(row: Row) -> bool:
    """Whether a goal is set and not reached."""
    return row.goal is not None and (row.ratio is None or row.ratio > row.goal)


def geometric_mean(ratios: Sequence[float]) -> float:
    """The n-th root of the product."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def load(path: Path) -> list[Row]:
    """Rows kept before; none where there is no file."""
    return [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []


def merge(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """New rows in the place of old ones of the same key, others at the end."""
    rows = {row.key: row for row in old}
    rows.update({row.key: row for row in new})
    return list(rows.values())


def save(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows, in one move."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    os.replace(draft, path)


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the tables and what is missed."""
    for kind in ("training", "inference"):
        chosen = [row for row in rows if row.kind == kind]
        if not chosen:
            continue
        table = Table(title=f"{kind}: seconds a step, ratio = ours / peer (lower is better)")
        for heading in ("network", "batch", "peer", "ours ms", "peer ms", "ratio", "goal", "", "notes"):
            table.add_column(
                heading, justify="right" if heading in ("batch", "ours ms", "peer ms") else "left"
            )
        for row in chosen:
            table.add_row(
                row.name,
                str(row.batch),
                row.peer,
                _milliseconds(row.ours_s),
                _milliseconds(row.peer_s),
                "-" if row.ratio is None else f"{row.ratio:.2f}",
                "-" if row.goal is None else f"{row.goal:.2f}",
                "" if row.goal is None else "[red]missed[/]" if missed(row) else "[green]met[/]",
                "; ".join(part for part in (row.mode, row.note) if part),
            )
        console.print(table)
    ratios = [r.ratio for r in rows if r.kind == "inference" and r.peer == "onnxruntime" and r.ratio]
    if ratios:
        mean = geometric_mean(ratios)
        state = (
            "[green]met[/]" if mean <= INFERENCE_MEAN and max(ratios) <= INFERENCE_EACH else "[red]missed[/]"
        )
        console.print(
            f"inference against onnxruntime, {len(ratios)} ratios: geometric mean {mean:.2f} (at most "
            f"{INFERENCE_MEAN:.2f}), largest {max(ratios):.2f} (at most {INFERENCE_EACH:.2f}): {state}"
        )
    for row in rows:
        if row.ratio is None:
            console.print(f"[red]missing[/] {row.kind} {row.name} batch {row.batch}, {row.peer}: {row.note}")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3f}"
