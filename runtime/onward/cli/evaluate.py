"""`onward evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from onward.cli.verbosity import console, note

__all__ = ["command"]


def command(
    model: Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="The data set; by default the one the model was trained on.")
    ] = None,
    part: Annotated[
        Literal["test", "validation", "train", "all"], typer.Option(help="Which part of the data.")
    ] = "test",
    split: Annotated[str | None, typer.Option(help="Fractions; by default the model's.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="By default the model's.")] = None,
    target: Annotated[str | None, typer.Option(help="The column or array to predict.")] = None,
    task: Annotated[str | None, typer.Option(help="classification or regression.")] = None,
    text: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    image_size: Annotated[int | None, typer.Option(help="The side of an image.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for colour images.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Further ones, such as top5,f1_weighted.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model on a data set.

    A model that Onward trained says how its inputs are prepared and how the data were divided, so the test
    part is the one that training never saw.

    \b
    Examples:
      onward evaluate runs/digits-lenet5-1/model.onnx
      onward evaluate runs/digits-lenet5-1/model.onnx --part validation --json
      onward evaluate imported.onnx --data images:photos --image-size 224 --part all
    """

    from onward.cli.options import data_overrides, listed
    from onward.runs.evaluation import evaluate

    overrides = data_overrides(data, split, split_seed, target, task, text, image_size, channels)
    found = evaluate(
        model,
        overrides,
        part=part,
        extra=[] if metrics is None else listed(metrics),
        batch_size=batch_size,
    )
    for text in found.notes:
        note(text)
    if as_json:
        print(json.dumps({"model": str(model), "data": found.spec, "part": part, **found.measures.as_dict()}))
    else:
        found.measures.show(console(), f"{model} on {found.spec}, {part} part")
