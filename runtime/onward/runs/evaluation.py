"""A trained model on a data set: what `onward evaluate` and a server's jobs measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import onnx_ir as ir

from onward.data import Dataset, Source
from onward.data.registry import is_table
from onward.engine import Session
from onward.errors import ConfigError
from onward.graph import Array, TensorSpec
from onward.model import Provenance, load, read_provenance
from onward.runs.config import DataTable
from onward.runs.measures import Measures, final_activation, measure, outputs_of
from onward.runs.preparation import (
    Part,
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
from onward.runs.whole import answered, open_whole

__all__ = ["Evaluation", "EvaluationData", "evaluate"]


@final
@dataclass(frozen=True, eq=False)
class EvaluationData:
    """A data set as one model takes it.

    Attributes:
        provenance: what the model's metadata say, if they do.
        prepared: what they say of its inputs.
        table: what was read, and how it is divided.
        source: the samples as they are read.
        classes: the model's, by index; None where it names none.
        activation: what the model ends in: "Softmax", "LogSoftmax", "Sigmoid" or None.
        strange: whether the model was trained on other data than these, as far as it says.
        notes: what the reader did.
    """

    provenance: Provenance | None
    prepared: Prepared
    table: DataTable
    source: Source
    classes: Sequence[str] | None
    activation: str | None
    strange: bool
    notes: tuple[str, ...]

    @classmethod
    def read(
        cls, model: ir.Model, specs: Sequence[TensorSpec], overrides: Mapping[str, Any]
    ) -> EvaluationData:
        """Read the data that a model was trained on, or those that the options name.

        Args:
            model: its metadata say how inputs are prepared and data divided.
            specs: its inputs.
            overrides: fields of the `[data]` table over those in the metadata; None counts as not given.

        Raises:
            ConfigError, DataError, StorageError, InvalidModelError: the data cannot be read, or do not fit
                what the metadata say.
        """
        provenance = read_provenance(model)
        table = data_table(provenance, overrides)
        prepared = Prepared.of(provenance)
        known = known_columns(prepared.preparation) if is_table(table.spec) else {}
        table = images_as_taken(table, [spec.shape for spec in specs])
        # without metadata the model's type says whether it takes bytes
        raw = prepared.raw or (provenance is None and all(spec.dtype.kind in "iu" for spec in specs))
        loss = None if provenance is None else provenance.configuration.get("loss")
        ignored = loss.get("ignore_index") if isinstance(loss, dict) else None
        source = read_data(table, raw=raw, ignore_index=ignored, **known)
        if prepared.preparation.table is None and source.dataset.table:
            source = plain_numbers(source)
        notes: list[str] = []
        if known.get("columns") is None and is_table(table.spec) and provenance is not None:
            notes.append("the model names no columns; these are taken in the file's order")
        notes += source.dataset.notes
        classes = None if provenance is None else provenance.class_names
        source = align_classes(source, classes)
        strange = provenance is not None and provenance.data_hash != (
            f"sha256:{digest_of(source.dataset, prepared.preparation)}"
        )
        return cls(
            provenance,
            prepared,
            table,
            source,
            classes,
            final_activation(model),
            strange,
            tuple(notes),
        )

    def part(self, part: Part) -> Dataset:
        """One part, as it is read; `prepared.given` makes of it what the model takes.

        Raises:
            ConfigError: the part has no samples.
        """
        return choose_part(self.source, self.table, part)

    def measure(self, outputs: Array, samples: Dataset, extra: Sequence[str] = ()) -> Measures:
        """Figures of a model's first output for samples of a part.

        Raises:
            ConfigError, DataError: see `onward.runs.measure`.
        """
        threshold = 0.5 if self.activation == "Sigmoid" else 0.0
        return measure(outputs, samples, classes=self.classes, extra=extra, threshold=threshold)


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model does on a data set.

    Attributes:
        path: of the model's file.
        part: of the data.
        model: as loaded.
        session: it was run in.
        provenance: what its metadata say, if they do.
        spec: of the data.
        read: the samples as they are read.
        samples: as the model takes them.
        outputs: the model's first output for them, [N, ...].
        activation: what it ends in: "Softmax", "LogSoftmax", "Sigmoid" or None.
        measures: figures over them.
        notes: what the reader did, and whether the data are others than the model was trained on.
    """

    path: Path
    part: Part
    model: ir.Model
    session: Session
    provenance: Provenance | None
    spec: str
    read: Dataset
    samples: Dataset
    outputs: Array
    activation: str | None
    measures: Measures
    notes: tuple[str, ...]


def evaluate(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    part: Part = "test",
    extra: Sequence[str] = (),
    batch_size: int = 256,
    threads: int | None = None,
) -> Evaluation:
    """Measure a model file on the data that it was trained on, or on others.

    Args:
        path: the .onnx file.
        overrides: fields of the `[data]` table over those in the model's metadata; None counts as not given.
        part: which part of the data.
        extra: further metrics by name.
        batch_size: samples a run.
        threads: of the engine; None: all cores.

    Raises:
        OnwardError: whatever is wrong with model, data or options.
    """
    path = Path(path)
    model = load(path)
    session = Session(model, threads=threads)
    if (found := _of_whole_batches(path, model, session, overrides or {}, part, extra)) is not None:
        return found
    data = EvaluationData.read(model, session.inputs, overrides or {})
    notes = list(data.notes)
    if data.strange and part != "all":
        notes.append(
            f"these are not the data that {path} was trained on; "
            f"its {part} part may hold samples that it has seen"
        )
    read = data.part(part)
    samples = data.prepared.given(read)
    outputs = outputs_of(session, samples, batch_size)
    return Evaluation(
        path=path,
        part=part,
        model=model,
        session=session,
        provenance=data.provenance,
        spec=data.table.spec,
        read=read,
        samples=samples,
        outputs=outputs,
        activation=data.activation,
        measures=data.measure(outputs, samples, extra),
        notes=tuple(notes),
    )


def _of_whole_batches(
    path: Path,
    model: ir.Model,
    session: Session,
    overrides: Mapping[str, Any],
    part: Part,
    extra: Sequence[str],
) -> Evaluation | None:
    """The same for data `batches:FOLDER`; None where they are of another kind."""
    provenance = read_provenance(model)
    table = data_table(provenance, overrides)
    loss = None if provenance is None else provenance.configuration.get("loss")
    whole = open_whole(table, loss.get("ignore_index") if isinstance(loss, dict) else None)
    if whole is None:
        return None
    number = {"train": 0, "validation": 1, "test": 2}.get(part)
    chosen = whole.every if number is None else whole.parts[number]
    if chosen is None:
        raise ConfigError(f"the {part} part of {table.spec} has no batches: --part all takes every one")
    prepared = Prepared.of(provenance)
    name = session.outputs[0].name
    given = chosen.mapped(prepared.given)
    outputs, samples = answered(lambda inputs: session.run(inputs)[name], given)
    activation = final_activation(model)
    classes = None if provenance is None else provenance.class_names
    threshold = 0.5 if activation == "Sigmoid" else 0.0
    strange = provenance is not None and provenance.data_hash != f"sha256:{whole.every.digest()}"
    return Evaluation(
        path=path,
        part=part,
        model=model,
        session=session,
        provenance=provenance,
        spec=table.spec,
        read=samples,
        samples=samples,
        outputs=outputs,
        activation=activation,
        measures=measure(outputs, samples, classes=classes, extra=extra, threshold=threshold),
        notes=(f"these are not the data that {path} was trained on",) if strange and part != "all" else (),
    )
