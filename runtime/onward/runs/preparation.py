"""Between a data set and a model: read, split, normalise, encode; and again from a model's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from pydantic import ValidationError

from onward.runs.config import DataTable
from onward.data import Dataset, Normalization, Source, Splits, Vocabulary, resolve
from onward.errors import ConfigError, DataError, InvalidModelError
from onward.graph import Array, TensorSpec
from onward.model import Provenance

__all__ = ["Part", "Preparation", "choose_part", "data_table", "feeds_of", "read_data", "stored_data"]

Part = Literal["test", "validation", "train", "all"]

_RESERVED = ("<padding>", "<unknown>")

_MANY_CLASSES = 10_000
"""More classes than this must each have a sample: labels that are identifiers would fill the memory."""


@final
@dataclass(frozen=True)
class Preparation:
    """What happens to a data set's inputs before a model takes them.

    Attributes:
        normalization: of the one float input.
        vocabulary: of the one text input.
        tokens: how many a text has.
    """

    normalization: Normalization | None = None
    vocabulary: Vocabulary | None = None
    tokens: int = 0

    @classmethod
    def fit(cls, train: Dataset, table: DataTable, known: Preparation | None = None) -> Preparation:
        """Measure the training part; what a model that is trained further knows already is kept.

        Raises:
            ConfigError: there are several inputs of a kind, so that it is not clear which one is meant.
        """
        vocabulary = known.vocabulary if known is not None else None
        if train.text_inputs and vocabulary is None:
            if len(train.text_inputs) > 1:
                raise ConfigError(
                    f"data {table.spec!r} has the texts {', '.join(train.text_inputs)}; one is needed"
                )
            texts = train.inputs[train.text_inputs[0]]
            vocabulary = Vocabulary.fit(texts, table.vocabulary_size, table.min_count)
        tokens = known.tokens if known is not None and known.tokens else table.tokens
        normalization = known.normalization if known is not None else None
        floats = [name for name, a in train.inputs.items() if a.dtype.kind == "f" and a.ndim > 1]
        if normalization is None and table.normalise and floats:
            if len(floats) > 1:
                raise ConfigError(
                    f"data {table.spec!r} has the float inputs {', '.join(floats)}: normalise them yourself "
                    "and say --no-normalise"
                )
            normalization = Normalization.fit(train, floats[0])
        return cls(normalization, vocabulary, tokens if vocabulary is not None else 0)

    @classmethod
    def of(cls, provenance: Provenance | None) -> Preparation:
        """What a model's metadata says.

        Raises:
            DataError: the metadata do not describe a normalisation or a vocabulary.
        """
        if provenance is None:
            return cls()
        normalization = (
            None if provenance.normalisation is None else Normalization.from_json(provenance.normalisation)
        )
        vocabulary, tokens = None, 0
        if provenance.vocabulary is not None:
            vocabulary = Vocabulary(tuple(provenance.vocabulary[len(_RESERVED) :]))
            tokens = int(stored_data(provenance).get("tokens", DataTable(spec="").tokens))
        return cls(normalization, vocabulary, tokens)

    @property
    def tokens_by_index(self) -> tuple[str, ...] | None:
        """What metadata hold of the vocabulary."""
        return None if self.vocabulary is None else (*_RESERVED, *self.vocabulary.words)

    def apply(self, dataset: Dataset) -> Dataset:
        """The data set as a model takes it.

        Raises:
            DataError: the inputs are not of the kind that this was measured on.
        """
        if dataset.text_inputs and self.vocabulary is not None:
            dataset = self.vocabulary.apply_to(dataset, self.tokens)
        if self.normalization is not None:
            dataset = self._aimed(dataset).apply_to(dataset)
        return dataset

    def normalise(self, array: Array) -> Array:
        """One input as a model takes it."""
        if self.normalization is None or array.dtype.kind != "f":
            return array
        return self.normalization.apply(array)

    def _aimed(self, dataset: Dataset) -> Normalization:
        """The normalisation for the data set's only float input, whatever that is called."""
        assert self.normalization is not None
        floats = [name for name, a in dataset.inputs.items() if a.dtype.kind == "f"]
        if self.normalization.input not in floats and len(floats) == 1:
            return replace(self.normalization, input=floats[0])
        return self.normalization


def stored_data(provenance: Provenance | None) -> dict[str, Any]:
    """The `[data]` table in a model's metadata; empty where there is none."""
    found = None if provenance is None else provenance.configuration.get("data")
    return dict(found) if isinstance(found, dict) else {}


def data_table(provenance: Provenance | None, overrides: Mapping[str, Any]) -> DataTable:
    """The data a model was trained on, with the given options over it.

    Raises:
        ConfigError: the metadata say nothing of the data, and the options do not name any.
        InvalidModelError: the metadata are malformed.
    """
    stored = stored_data(provenance)
    given = {key: value for key, value in overrides.items() if value is not None}
    if "spec" in given and "spec" in stored and _kind(given["spec"]) != _kind(stored["spec"]):
        # options of one kind of reader mean nothing to another
        stored = {key: stored[key] for key in ("tokens", "split", "split_seed") if key in stored}
    if "spec" not in {**stored, **given}:
        raise ConfigError("the model does not say what data it was trained on; give --data")
    try:
        return DataTable.model_validate({**stored, **given})
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise InvalidModelError(f"metadata 'onward.configuration', data: {fields} cannot be used") from None


def read_data(table: DataTable) -> Source:
    """Read the data set.

    Raises:
        ConfigError, DataError, StorageError: see `onward.data.resolve`.
    """
    options: dict[str, Any] = {
        "target": table.target,
        "text": table.text,
        "image_size": table.image_size,
        "channels": table.channels,
        "limit": table.limit,
    }
    match _kind(table.spec):
        case "text":
            options |= {"tokens": table.tokens, "seed": table.split_seed if table.limit is not None else None}
        case "csv" | "npz":
            options["task"] = table.task
    found = resolve(table.spec, **options)
    data = found.dataset
    if data.classes is None and data.class_count is not None:
        if data.class_count > max(_MANY_CLASSES, len(data)):
            raise DataError(
                f"data set {data.name!r}: label {data.class_count - 1} would make {data.class_count} classes "
                f"of {len(data)} samples; number the classes 0, 1, ..., or say --task regression"
            )
        # a part may lack the highest class, and all parts must have the same classes
        data = replace(data, classes=tuple(str(i) for i in range(data.class_count)))
    return Source(data, found.test)


def choose_part(source: Source, table: DataTable, part: Part) -> Dataset:
    """One part of a data set, divided as the table says.

    Raises:
        ConfigError: the part has no samples.
    """
    if part == "all":
        return source.dataset
    splits: Splits = source.split(table.split, table.split_seed)
    chosen = {"train": splits.train, "validation": splits.validation, "test": splits.test}[part]
    if chosen is None:
        raise ConfigError(f"there is no {part} part: the fractions are {', '.join(map(str, table.split))}")
    return chosen


def feeds_of(dataset: Dataset, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The data set's inputs by the model's names and in its types: by name, or the only one.

    Raises:
        ConfigError: the names do not fit.
    """
    have = {name: a for name, a in dataset.inputs.items() if not name.endswith(".target")}
    if len(specs) == 1 and len(have) == 1:
        have = {specs[0].name: next(iter(have.values()))}
    if missing := [spec.name for spec in specs if spec.name not in have]:
        raise ConfigError(
            f"the model takes {', '.join(s.name for s in specs)}, data {dataset.name!r} has "
            f"{', '.join(have)}: {missing[0]!r} is missing"
        )
    return {spec.name: np.asarray(have[spec.name]).astype(spec.dtype, copy=False) for spec in specs}


def _kind(spec: Any) -> str:
    return str(spec).partition(":")[0]
