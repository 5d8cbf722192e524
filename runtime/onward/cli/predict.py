"""`onward predict`."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onward.cli.fixing import CONSTANTS, SHAPES, fixed_as_asked

if TYPE_CHECKING:
    from onward.model import Provenance

__all__ = ["SETTINGS", "command"]

SETTINGS = {"ignore_unknown_options": True}
"""Of the command line's parser: "-1.5,2" is an input."""
_OPTION = re.compile(r"-(?![0-9.])\S+")


def command(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images, sounds, tables, .npy and .npz files, texts, JSON objects, or numbers with commas, "
            "as the model takes them.",
            show_default=False,
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 3,
    raw: Annotated[bool, typer.Option("--raw", help="Give arrays to the model as they are.")] = False,
    shapes: Annotated[list[str] | None, typer.Option(help=SHAPES)] = None,
    constants: Annotated[list[str] | None, typer.Option(help=CONSTANTS)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz file.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Compute a model's answers: classes with probabilities, or numbers.

    Inputs are as they are read: image files, the numbers of a table, texts. Columns of a CSV file are
    matched by name. What the model's graph does not prepare itself is prepared first, as its metadata say.

    \b
    Examples:
      onward predict runs/digits-lenet5-1/model.onnx seven.png two.png
      onward predict runs/reviews-textcnn-1/model.onnx "a film to remember"
      onward predict runs/iris-mlp-1/model.onnx 5.1,3.5,1.4,0.2 --json
      onward predict runs/people-mlp-1/model.onnx people.csv --output answers.npz
      onward predict model.onnx batch.npz --output answers.npz
    """
    import numpy as np

    _refuse_options(context, inputs)
    from onward.cli.inputs import Reader, without_metadata
    from onward.engine import Session
    from onward.model import atomic_write, load, read_provenance
    from onward.runs.measures import final_activation
    from onward.runs.preparation import Prepared, stored_data

    loaded = fixed_as_asked(load(model), shapes, constants)
    provenance = read_provenance(loaded)
    session = Session(loaded)
    stored = stored_data(provenance)
    target = stored.get("target", ())
    reader = Reader(
        session.inputs,
        without_metadata(Prepared.of(provenance)) if raw else Prepared.of(provenance),
        text_column=str(stored.get("text", "text")),
        image_fit=fit if (fit := stored.get("fit")) in ("crop", "pad") else "stretch",
        left_out=tuple([target] if isinstance(target, str) else map(str, target)),
    )
    labels, arrays = reader.read(inputs)
    parts = [
        session.run({name: a[i : i + batch_size] for name, a in arrays.items()})
        for i in range(0, len(labels), batch_size)
    ]
    outputs = {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in session.outputs}
    if output is not None:
        with atomic_write(output) as file:
            np.savez(file, **outputs)  # type: ignore[arg-type] # NumPy's stub takes names for its options
    first = outputs[session.outputs[0].name]
    activation = final_activation(loaded)
    names = None if provenance is None else provenance.class_names
    kind = _kind(provenance, activation, first)
    rows: list[dict[str, Any]]
    if kind == "classes":
        rows = _classes(first, activation, names)
    elif kind == "labels":
        rows = _labels(first, activation, names)
    elif kind == "positions":
        rows = _positions(first, provenance, names)
    else:
        rows = [{name: a[i].tolist() for name, a in outputs.items()} for i in range(len(labels))]
    if as_json:
        print(json.dumps([{"input": label, **row} for label, row in zip(labels, rows, strict=True)]))
        return
    for label, row in zip(labels, rows, strict=True):
        print(f"{label}: {_text(row, top)}")
    if output is not None:
        print(f"{output}: written")


def _refuse_options(context: typer.Context, inputs: Sequence[str]) -> None:
    """Refuse a mistyped option among the inputs; numbers may begin with a minus."""
    for text in inputs:
        if not _OPTION.fullmatch(text):
            continue
        known = [name for parameter in context.command.params for name in parameter.opts]
        near = difflib.get_close_matches(text.partition("=")[0], known)
        hint = f" (possible options: {', '.join(near)})" if near else ""
        raise typer.BadParameter(f"no such option: {text}{hint}")


def _kind(provenance: Provenance | None, activation: str | None, outputs: Any) -> str:
    """How outputs are shown: "classes", "labels", "positions", or "numbers" where nothing says more."""
    recorded = {} if provenance is None else provenance.configuration
    task, targets = recorded.get("task"), recorded.get("targets")
    if task == "regression" or targets == "regression":
        return "numbers"
    if targets in ("sequence labels", "dense labels"):
        return "positions"
    loss = recorded.get("loss")
    if outputs.ndim != 2 or (isinstance(loss, dict) and loss.get("name") in ("mse", "l1", "huber")):
        return "numbers"
    if targets == "multi-label" or (targets is None and activation == "Sigmoid" and outputs.shape[1] > 1):
        return "labels"
    return "classes" if task == "classification" or activation is not None else "numbers"


def _named(names: Sequence[str] | None, count: int) -> list[str]:
    return list(names) if names is not None and len(names) == count else [str(i) for i in range(count)]


def _labels(scores: Any, activation: str | None, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """For each row of scores [N, L] the labels that hold, and every label's probability."""
    import numpy as np

    values = scores.astype(np.float64)
    if activation != "Sigmoid":
        values = np.exp(-np.logaddexp(0, -values))
    labels = _named(names, values.shape[1])
    return [
        {
            "labels": [label for label, share in zip(labels, row, strict=True) if share > 0.5],
            "probabilities": dict(zip(labels, row.tolist(), strict=True)),
        }
        for row in values
    ]


def _positions(
    scores: Any, provenance: Provenance | None, names: Sequence[str] | None
) -> list[dict[str, Any]]:
    """For each sample the class of every position."""
    import numpy as np

    axis = 1 if provenance is None else provenance.configuration.get("class_axis", 1)
    found = scores.argmax(axis=axis)
    labels = np.array(_named(names, scores.shape[axis]), dtype=object)
    return [{"classes": row.tolist()} for row in labels[found]]


def _classes(scores: Any, activation: str | None, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """For each row of scores [N, K] the class and every class's probability."""
    import numpy as np

    values = scores.astype(np.float64)
    if values.shape[1] == 1:
        positive = values if activation == "Sigmoid" else np.exp(-np.logaddexp(0, -values))
        values = np.concatenate([1 - positive, positive], axis=1)
    elif activation == "LogSoftmax":
        values = np.exp(values)
    elif activation is None:
        shifted = np.exp(values - values.max(axis=1, keepdims=True))
        values = shifted / shifted.sum(axis=1, keepdims=True)
    labels = _named(names, values.shape[1])
    return [
        {
            "class": labels[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(labels, row.tolist(), strict=True)),
        }
        for row in values
    ]


def _text(row: dict[str, Any], top: int) -> str:
    if "labels" in row:
        shares = ", ".join(f"{name} {share:.4f}" for name, share in row["probabilities"].items())
        return f"{', '.join(row['labels']) or 'none'} ({shares})"
    if "classes" in row:
        return " ".join(map(str, row["classes"]))
    if "probabilities" in row:
        ranked = sorted(row["probabilities"].items(), key=lambda item: -item[1])[:top]
        return ", ".join(f"{name} {share:.4f}" for name, share in ranked)
    texts = []
    for name, values in row.items():
        text = json.dumps(values)
        texts.append(f"{name} {text if len(text) <= 200 else text[:199] + '…'}")
    return "; ".join(texts)
