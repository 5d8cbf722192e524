"""`onward evaluate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

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
    from rich.console import Console

    from onward.cli.options import listed, numbers
    from onward.data.registry import is_table
    from onward.engine import Session
    from onward.model import load, read_provenance
    from onward.runs.measures import final_activation, measure, outputs_of
    from onward.runs.preparation import (
        Prepared,
        align_classes,
        choose_part,
        data_table,
        digest_of,
        images_as_taken,
        known_columns,
        plain_numbers,
        read_data,
    )

    loaded = load(model)
    provenance = read_provenance(loaded)
    overrides: dict[str, Any] = {
        "spec": data,
        "split": None if split is None else numbers("--split", split),
        "split_seed": split_seed,
        "target": listed(target) if target is not None and "," in target else target,
        "task": task,
        "text": text,
        "image_size": image_size,
        "channels": channels,
    }
    table = data_table(provenance, overrides)
    prepared = Prepared.of(provenance)
    known = known_columns(prepared.preparation) if is_table(table.spec) else {}
    session = Session(loaded)
    table = images_as_taken(table, [spec.shape for spec in session.inputs])
    # without metadata the model's type says whether it takes bytes
    raw = prepared.raw or (provenance is None and all(spec.dtype.kind in "iu" for spec in session.inputs))
    loss = None if provenance is None else provenance.configuration.get("loss")
    ignored = loss.get("ignore_index") if isinstance(loss, dict) else None
    source = read_data(table, raw=raw, ignore_index=ignored, **known)
    if prepared.preparation.table is None and source.dataset.table:
        source = plain_numbers(source)
    if known.get("columns") is None and is_table(table.spec) and provenance is not None:
        print("note: the model names no columns; these are taken in the file's order", file=sys.stderr)
    for note in source.dataset.notes:
        print(f"note: {note}", file=sys.stderr)
    classes = None if provenance is None else provenance.class_names
    source = align_classes(source, classes)
    if (
        provenance is not None
        and provenance.data_hash != f"sha256:{digest_of(source.dataset, prepared.preparation)}"
        and part != "all"
    ):
        print(
            f"note: these are not the data that {model} was trained on; "
            f"its {part} part may hold samples that it has seen",
            file=sys.stderr,
        )
    chosen = prepared.given(choose_part(source, table, part))
    outputs = outputs_of(session, chosen, batch_size)
    found = measure(
        outputs,
        chosen,
        classes=classes,
        extra=[] if metrics is None else listed(metrics),
        threshold=0.5 if final_activation(loaded) == "Sigmoid" else 0.0,
    )
    if as_json:
        print(json.dumps({"model": str(model), "data": table.spec, "part": part, **found.as_dict()}))
    else:
        found.show(Console(), f"{model} on {table.spec}, {part} part")
