"""`onward verify`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from onward.cli.fixing import CONSTANTS, SHAPES, fixed_as_asked
from onward.cli.verbosity import console

if TYPE_CHECKING:
    from onward.verify import Report, TensorRow

__all__ = ["command"]


def command(
    model: Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)],
    backward: Annotated[
        bool, typer.Option("--backward", help="Compare gradients and whole training steps too.")
    ] = False,
    inputs: Annotated[
        Path | None, typer.Option(help="An .npz file with arrays by input name; others are random.")
    ] = None,
    dim: Annotated[
        list[str] | None, typer.Option(help="The extent of a symbolic dimension: N=4; repeatable.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Random inputs to try.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Training steps with --backward.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="The extent of symbolic first dimensions.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the random inputs.")] = 0,
    engine: Annotated[
        Literal["auto", "compiled", "interpreter"],
        typer.Option(help="Which of Onward's engines is compared."),
    ] = "auto",
    shapes: Annotated[list[str] | None, typer.Option(help=SHAPES)] = None,
    constants: Annotated[list[str] | None, typer.Option(help=CONSTANTS)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare Onward with onnxruntime on a model; exit code 1 where they disagree.

    A mismatch names the first node that differs. With --backward, elements that lie within rounding of a kink
    (an activation's, a maximum's) are held on the same side in both engines, and counted; what a network
    amplifies rounding to is measured, and is no disagreement.

    \b
    Examples:
      onward verify model.onnx
      onward verify model.onnx --backward --steps 5
      onward verify model.onnx --engine interpreter
      onward verify model.onnx --inputs batch.npz --dim length=128 --json
    """
    from onward.cli.inputs import extents, read_arrays
    from onward.model import load
    from onward.verify import compare, compare_training

    loaded = fixed_as_asked(load(model), shapes, constants)
    names = [v.name or "" for v in loaded.graph.inputs if v.name not in loaded.graph.initializers]
    given = None if inputs is None else read_arrays(inputs)
    if given is not None and "" in given and len(names) == 1:
        given = {names[0]: given[""]}
    dims = extents(dim)
    runs = 1 if given else samples
    reports = {
        "forward": compare(loaded, given, seed=seed, samples=runs, batch=batch, dims=dims, engine=engine)
    }
    if backward:
        reports["backward"] = compare_training(
            loaded, inputs=given, steps=steps, seed=seed, batch=batch, dims=dims, engine=engine
        )
    if as_json:
        print(json.dumps({name: report.to_dict() for name, report in reports.items()}))
    else:
        _show(model, list(reports.items()))
    if not all(_sound(report) for report in reports.values()):
        raise typer.Exit(1)


def _sound(report: Report) -> bool:
    """Whether nothing but rounding, as it was measured on each tensor, is in the way of agreement."""
    return all(row.ok or row.rounding for row in report.rows)


def _verdict(rows: Sequence[TensorRow], kinks: int) -> str:
    if all(row.ok for row in rows):
        return f"agree, {kinks} at kinks" if kinks else "agree"
    return "rounding" if all(row.ok or row.rounding for row in rows) else "DIFFER"


def _show(model: Path, reports: Sequence[tuple[str, Report]]) -> None:
    from rich.table import Table

    table = Table(title=str(model))
    for title in ("", "tensors", "runs", "largest difference", "relative", "verdict"):
        table.add_column(title, justify="left" if title in ("", "verdict") else "right")
    for name, report in reports:
        kinds = dict.fromkeys(row.kind for row in report.rows)
        for kind in kinds:
            rows = [row for row in report.rows if row.kind == kind]
            table.add_row(
                f"{name}: {kind}",
                str(len(rows)),
                str(report.runs),
                f"{max(row.max_abs for row in rows):.3g}",
                f"{max(row.max_rel for row in rows):.3g}",
                _verdict(rows, report.kinks),
            )
    console().print(table)
    for _, report in reports:
        print(report)
