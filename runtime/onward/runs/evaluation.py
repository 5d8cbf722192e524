"""Measures a model's file on data: what `onward evaluate` and `onward report` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from onward.data import Dataset
from onward.data.registry import is_table
from onward.engine import Session
from onward.graph import Array
from onward.model import Provenance, load, read_provenance
from onward.runs.measures import Measures, final_activation, measure, outputs_of
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

__all__ = ["Evaluation", "Part", "evaluate_file"]

Part = Literal["test", "validation", "train", "all"]


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model's answers on a part of a data set.

    Attributes:
        model: the file.
        data: what was read.
        part: which part of it.
        samples: as read.
        outputs: the model's first output, [N, ...].
        activation: what the output ends in: "Softmax", "LogSoftmax", "Sigmoid" or None.
        measures: figures.
        notes: what one should know.
        provenance: what the file says of itself; None where it says nothing.
    """

    model: Path
    data: str
    part: Part
    samples: Dataset
    outputs: Array
    activation: str | None
    measures: Measures
    notes: tuple[str, ...]
    provenance: Provenance | None


def evaluate_file(
    model: Path,
    overrides: Mapping[str, Any],
    *,
    part: Part = "test",
    metrics: Sequence[str] = (),
    batch_size: int = 256,
) -> Evaluation:
    """Measure a model's file; it says how its inputs are prepared and how the data were divided.

    Args:
        model: the file.
        overrides: entries of a run's data table that stand in the place of the file's; None: the file's.
        part: of the data; "all" is all of them.
        metrics: further ones by name.
        batch_size: samples that are computed at once.

    Raises:
        OnwardError: the file or the data cannot be read, or do not fit together.
    """
    loaded = load(model)
    provenance = read_provenance(loaded)
    table = data_table(provenance, dict(overrides))
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
    notes = list(source.dataset.notes)
    if known.get("columns") is None and is_table(table.spec) and provenance is not None:
        notes.insert(0, "the model names no columns; these are taken in the file's order")
    classes = None if provenance is None else provenance.class_names
    source = align_classes(source, classes)
    own = None if provenance is None else provenance.data_hash
    if (
        own is not None
        and part != "all"
        and own != f"sha256:{digest_of(source.dataset, prepared.preparation)}"
    ):
        notes.append(
            f"these are not the data that {model} was trained on; its {part} part may hold samples that it "
            "has seen"
        )
    samples = choose_part(source, table, part)
    chosen = prepared.given(samples)
    outputs = outputs_of(session, chosen, batch_size)
    activation = final_activation(loaded)
    threshold = 0.5 if activation == "Sigmoid" else 0.0
    found = measure(outputs, chosen, classes=classes, extra=metrics, threshold=threshold)
    return Evaluation(model, table.spec, part, samples, outputs, activation, found, tuple(notes), provenance)
