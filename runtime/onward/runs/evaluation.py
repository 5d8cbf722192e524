"""The data that a model is measured on, divided and prepared as its metadata say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import onnx_ir as ir

from onward.data import Dataset, Source
from onward.engine import Session
from onward.graph import TensorSpec
from onward.model import read_provenance
from onward.runs.config import DataTable
from onward.runs.measures import Measures, final_activation, measure, outputs_of
from onward.runs.preparation import (
    Part,
    Prepared,
    align_classes,
    choose_part,
    data_table,
    read_data,
)

__all__ = ["EvaluationData"]


@final
@dataclass(frozen=True, eq=False)
class EvaluationData:
    """A data set as one model takes it.

    Attributes:
        table: what was read, and how it is divided.
        classes: the model's, by index; None where it names none.
        strange: whether the model was trained on other data than these, as far as it says.
        notes: what a user should know of how the data were read.
    """

    table: DataTable
    classes: Sequence[str] | None
    strange: bool
    notes: tuple[str, ...]
    _source: Source
    _prepared: Prepared
    _threshold: float

    @classmethod
    def read(
        cls, model: ir.Model, specs: Sequence[TensorSpec], overrides: Mapping[str, Any]
    ) -> EvaluationData:
        """Read the data a model was trained on, or those that the options name.

        Args:
            model: its metadata say how inputs are prepared and data divided.
            specs: its inputs.
            overrides: fields of the `[data]` table; those that are None are the model's own.

        Raises:
            ConfigError, DataError, StorageError, InvalidModelError: the data cannot be read, or do not fit
                what the metadata say.
        """
        provenance = read_provenance(model)
        table = data_table(provenance, overrides)
        prepared = Prepared.of(provenance)
        tabular = table.spec.startswith("csv:")
        columns = prepared.preparation.columns if tabular else None
        # without metadata the model's type says whether it takes bytes
        raw = prepared.raw or (provenance is None and all(spec.dtype.kind in "iu" for spec in specs))
        loss = None if provenance is None else provenance.configuration.get("loss")
        ignored = loss.get("ignore_index") if isinstance(loss, dict) else None
        source = read_data(table, raw=raw, columns=columns, ignore_index=ignored)
        notes = list(source.dataset.notes)
        if columns is None and tabular and provenance is not None:
            notes.insert(0, "the model names no columns; these are taken in the file's order")
        classes = None if provenance is None else provenance.class_names
        source = align_classes(source, classes)
        return cls(
            table,
            classes,
            provenance is not None and provenance.data_hash != f"sha256:{source.dataset.digest()}",
            tuple(notes),
            source,
            prepared,
            0.5 if final_activation(model) == "Sigmoid" else 0.0,
        )

    def part(self, part: Part) -> Dataset:
        """One part, prepared as far as the graph does not do it.

        Raises:
            ConfigError: the part has no samples.
        """
        return self._prepared.outside.apply(choose_part(self._source, self.table, part))

    def measure(
        self, session: Session, chosen: Dataset, batch_size: int, extra: Sequence[str] = ()
    ) -> Measures:
        """Figures of a model on a part.

        Raises:
            ConfigError, DataError, InputError: see `onward.runs.measure`.
        """
        outputs = outputs_of(session, chosen, batch_size)
        return measure(outputs, chosen, classes=self.classes, extra=extra, threshold=self._threshold)
