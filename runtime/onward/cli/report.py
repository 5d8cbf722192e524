"""`onward report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onward.cli.verbosity import note
from onward.errors import ConfigError

__all__ = ["command"]


def command(
    run: Annotated[
        Path, typer.Argument(help="A run's folder, or an .onnx file that a run wrote.", show_default=False)
    ],
    data: Annotated[
        str | None, typer.Option(help="The data set; by default the one the model was trained on.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="The run's history as CSV; by default history.csv beside the model.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The page; by default report.html beside the model.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it is there.")] = False,
) -> None:
    """Write one page about a trained model, which needs no network: figures, curves, wrong answers.

    On the part of the data that training never saw: figures by class, the confusion matrix, ROC, precision
    against recall, calibration, and the samples that the model gets wrong with the most confidence; and the
    curves of the run.

    \b
    Examples:
      onward report runs/digits-lenet5-1
      onward report model.onnx --history log.csv --output model.html
    """
    from onward.model import atomic_write
    from onward.runs.evaluation import evaluate
    from onward.runs.report import read_history, report_page

    model = run / "model.onnx" if run.is_dir() else run
    page = output if output is not None else model.with_name("report.html")
    if page.exists() and not overwrite:
        raise ConfigError(f"{page} is there already: choose another --output, or say --overwrite")
    found = history if history is not None else model.with_name("history.csv")
    if history is not None and not found.exists():
        raise ConfigError(f"{found}: there is no such file")
    rows = read_history(found) if found.exists() else []
    evaluation = evaluate(model, {"spec": data})
    for text in evaluation.notes:
        note(text)
    with atomic_write(page) as file:
        file.write(report_page(evaluation, rows).encode())
    curves = "" if rows else "; there is no history.csv beside the model, so there are no curves of the run"
    print(f"{page}: written{curves}")
