"""`onward predict`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    model: Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images, .npy, .npz or .csv files, texts, or numbers with commas, as the model takes them.",
            show_default=False,
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 3,
    raw: Annotated[bool, typer.Option("--raw", help="Give arrays to the model as they are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz file.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Compute a model's answers: classes with probabilities, or numbers.

    Inputs are as they are read: image files, the numbers of a table, texts. Columns of a CSV file are matched by
    name. What the model's graph does not prepare itself is prepared first, as its metadata say.

    \b
    Examples:
      onward predict runs/lenet5/model.onnx seven.png two.png
      onward predict runs/textcnn/model.onnx "a film to remember"
      onward predict runs/mlp/model.onnx 5.1,3.5,1.4,0.2 --json
      onward predict model.onnx batch.npz --output answers.npz
    """
    import numpy as np

    from onward.cli.inputs import Reader, without_metadata
    from onward.engine import Session
    from onward.model import atomic_write, load, read_provenance
    from onward.runs.measures import final_activation
    from onward.runs.preparation import Prepared, stored_data

    loaded = load(model)
    provenance = read_provenance(loaded)
    session = Session(loaded)
    stored = stored_data(provenance)
    target = stored.get("target", ())
    reader = Reader(
        session.inputs,
        without_metadata(Prepared.of(provenance)) if raw else Prepared.of(provenance),
        text_column=str(stored.get("text", "text")),
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
    task = None if provenance is None else provenance.configuration.get("task")
    first = outputs[session.outputs[0].name]
    activation = final_activation(loaded)
    rows: list[dict[str, Any]]
    if first.ndim == 2 and task != "regression" and (task == "classification" or activation is not None):
        rows = _classes(first, activation, None if provenance is None else provenance.class_names)
    else:
        rows = [{name: a[i].tolist() for name, a in outputs.items()} for i in range(len(labels))]
    if as_json:
        print(json.dumps([{"input": label, **row} for label, row in zip(labels, rows, strict=True)]))
        return
    for label, row in zip(labels, rows, strict=True):
        print(f"{label}: {_text(row, top)}")
    if output is not None:
        print(f"{output}: written")


def _classes(scores: Any, activation: str | None, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """For each row of scores [N, K] the class and every class's probability."""
    import numpy as np

    values = scores.astype(np.float64)
    if values.shape[1] == 1:
        positive = values if activation == "Sigmoid" else 1 / (1 + np.exp(-values))
        values = np.concatenate([1 - positive, positive], axis=1)
    elif activation == "LogSoftmax":
        values = np.exp(values)
    elif activation is None:
        shifted = np.exp(values - values.max(axis=1, keepdims=True))
        values = shifted / shifted.sum(axis=1, keepdims=True)
    count = values.shape[1]
    labels = list(names) if names is not None and len(names) == count else [str(i) for i in range(count)]
    return [
        {
            "class": labels[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(labels, row.tolist(), strict=True)),
        }
        for row in values
    ]


def _text(row: dict[str, Any], top: int) -> str:
    if "probabilities" in row:
        ranked = sorted(row["probabilities"].items(), key=lambda item: -item[1])[:top]
        return ", ".join(f"{name} {share:.4f}" for name, share in ranked)
    texts = []
    for name, values in row.items():
        text = json.dumps(values)
        texts.append(f"{name} {text if len(text) <= 200 else text[:199] + '…'}")
    return "; ".join(texts)
