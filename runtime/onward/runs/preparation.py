"""Between a data set and a model: read, divide, prepare; and again from what a model's metadata say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from pydantic import ValidationError

from onward.data import (
    Dataset,
    Normalization,
    NumberPreparation,
    Preparation,
    Source,
    Splits,
    Subwords,
    TablePreparation,
    TextPreparation,
    Vocabulary,
    as_dtype,
    resolve,
)
from onward.data.registry import split_spec
from onward.errors import ConfigError, DataError, InvalidModelError
from onward.graph import Array, Dim, TensorSpec
from onward.model import Provenance
from onward.parallel import Group
from onward.runs.config import DataTable

__all__ = [
    "Part",
    "Prepared",
    "align_classes",
    "choose_part",
    "data_table",
    "digest_of",
    "feeds_of",
    "fit_preparation",
    "input_names",
    "known_columns",
    "metadata_of",
    "plain_numbers",
    "read_data",
    "stored_data",
]

Part = Literal["test", "validation", "train", "all"]

_RESERVED = ("<padding>", "<unknown>")

_MANY_CLASSES = 10_000
"""More classes than this must each have a sample: labels that are identifiers would fill the memory."""

_TEXT_NOTE = (
    "the graph takes token numbers, not texts: this entry and onward.vocabulary say how texts become "
    "those; `onward predict`, `evaluate` and `serve` do it"
)


@final
@dataclass(frozen=True, eq=False)
class Prepared:
    """What a model's metadata say of its inputs.

    Attributes:
        preparation: from inputs as they are read to inputs as the network takes them.
        inside: whether the graph does that to numbers; texts are always encoded before it.
        raw: whether images are read as bytes; files of Onward 0.1 were trained on pixels of 0 … 1.
    """

    preparation: Preparation
    inside: bool = False
    raw: bool = False

    @classmethod
    def of(cls, provenance: Provenance | None) -> Prepared:
        """Read a model's metadata.

        Raises:
            InvalidModelError: they describe no preparation.
        """
        if provenance is None:
            return cls(Preparation())
        words = provenance.vocabulary
        known = None if words is None else tuple(words[len(_RESERVED) :])
        try:
            if provenance.preparation is not None:
                found = Preparation.from_json(provenance.preparation, known)
                return cls(found, bool(provenance.preparation["inside"]), raw=True)
            numbers, text = {}, None
            if provenance.normalisation is not None:
                normalization = Normalization.from_json(provenance.normalisation)
                numbers[normalization.input] = NumberPreparation(
                    np.dtype(np.float32), normalization=normalization
                )
            if known is not None:
                tokens = int(stored_data(provenance).get("tokens", DataTable(spec="").tokens))
                text = TextPreparation(Vocabulary(known, "runs"), tokens)
        except DataError as error:
            raise InvalidModelError(f"the model's metadata: {error}") from None
        return cls(Preparation(numbers, text))

    @property
    def outside(self) -> Preparation:
        """What has to be done before the graph."""
        whole = self.preparation
        return replace(whole, numbers={}, table=None) if self.inside else whole

    def given(self, dataset: Dataset) -> Dataset:
        """The data set, as read, with the inputs that the graph takes."""
        table = self.preparation.table
        if table is not None and self.inside:
            return replace(dataset, inputs=table.raw(dataset), columns=None)
        return self.outside.apply(dataset)


def fit_preparation(
    train: Dataset, table: DataTable, known: Prepared | None = None, untouched: Collection[str] = ()
) -> Preparation:
    """Measure the training part; what a model that is trained further knows already is kept.

    Args:
        train: the training part.
        table: whether numbers are normalised, and how texts become tokens.
        known: what the model's metadata say.
        untouched: inputs that the network takes as they are.

    Raises:
        ConfigError: there are several texts, or the tokenizer's package is missing.
        DataError: the data are not of the kind that the model was trained on.
    """
    old = Preparation() if known is None else known.preparation
    if train.table:
        if old.table is not None:
            return old
        found = TablePreparation.fit(train, table.columns, scale=table.normalise)
        return Preparation(columns=found.names, table=found)
    text = old.text
    if train.text_inputs and text is None:
        if len(train.text_inputs) > 1:
            raise ConfigError(
                f"data {table.spec!r} has the texts {', '.join(train.text_inputs)}; one is needed"
            )
        texts = train.inputs[train.text_inputs[0]]
        encoder = (
            Vocabulary.fit(texts, table.vocabulary_size, table.min_count)
            if table.tokenizer == "words"
            else Subwords.fit(texts, table.tokenizer, table.vocabulary_size)
        )
        text = TextPreparation(encoder, table.tokens)
    fresh = Preparation.fit(train, normalise=table.normalise and not old.numbers, untouched=untouched)
    numbers = dict(fresh.numbers)
    for name, own in numbers.items():
        kept = old.numbers.get(name)
        if kept is None and len(old.numbers) == len(numbers) == 1:
            kept = next(iter(old.numbers.values()))
        if kept is None:
            continue
        # what older files say is of pixels between 0 and 1
        numbers[name] = (
            replace(own, normalization=kept.normalization) if known is not None and not known.raw else kept
        )
    return Preparation(numbers, text, old.columns if old.columns is not None else train.columns)


def metadata_of(preparation: Preparation, *, inside: bool) -> dict[str, Any]:
    """The fields of a `Provenance` that say how inputs are prepared.

    Args:
        preparation: by the model's input names.
        inside: whether the graph does it.
    """
    content = {**preparation.to_json(), "inside": inside}
    fields: dict[str, Any] = {"preparation": content}
    if preparation.text is not None:
        content["text"] = {**content["text"], "note": _TEXT_NOTE}
        if isinstance(preparation.text.encoder, Vocabulary):
            fields["vocabulary"] = (*_RESERVED, *preparation.text.encoder.words)
    return fields


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
        wrong = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}
        fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        if wrong & set(given):
            problem = error.errors()[0]
            raise ConfigError(f"data, {fields}: {problem['msg']}, got {problem['input']!r}") from None
        raise InvalidModelError(f"metadata 'onward.configuration', data: {fields} cannot be used") from None


def read_data(
    table: DataTable,
    *,
    raw: bool = True,
    columns: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    unsaid: Sequence[str] = (),
    ignore_index: int | None = None,
    group: Group | None = None,
) -> Source:
    """Read the data set: with several ranks, each file by one of them.

    Args:
        table: what to read.
        raw: images as bytes, else as floats of 0 … 1.
        columns: the columns of a table that the model takes, found by name; None: all of them.
        kinds: what they hold, "number" or "text"; None: what their cells are.
        unsaid: columns that a table may have besides.
        ignore_index: the label in arrays whose samples do not count.
        group: the ranks. Images and sounds are divided among them; anything else the first one reads.

    Raises:
        ConfigError, DataError, StorageError: see `onward.data.resolve`.
    """
    kind = _kind(table.spec)
    options: dict[str, Any] = {
        "target": table.target,
        "text": table.text,
        "image_size": table.image_size,
        "channels": table.channels,
        "limit": table.limit,
        "drop_duplicates": table.drop_duplicates or None,
    }
    match kind:
        case "text":
            options |= {"skip_bad_rows": table.skip_bad_rows or None}
            options |= {"tokens": table.tokens, "seed": table.split_seed if table.limit is not None else None}
        case "table" | "csv" | "sqlite":
            options |= {
                "task": table.task,
                "include": columns if columns is not None else table.include,
                "exclude": table.exclude if columns is None else None,
                "group": table.group,
                "time": table.time,
                "weight": table.weight,
                "unsaid": unsaid,
                "kinds": kinds if kinds is not None else _asked_kinds(table),
                "skip_bad_rows": table.skip_bad_rows or None,
            }
        case "npz":
            options |= {"task": table.task, "ignore_index": ignore_index}
        case "audio":
            options |= {"rate": table.rate, "seconds": table.seconds}
            options |= {"skip_bad_files": table.skip_bad_files or None}
        case "images":
            options |= {"raw": raw, "fit": table.fit, "skip_bad_files": table.skip_bad_files or None}
        case "idx":
            options |= {"raw": raw, "fit": table.fit}
            options["seed"] = table.split_seed if table.limit is not None else None
        case "digits":
            options["raw"] = raw
    if group is None:
        return resolve(table.spec, **options)
    if kind in ("images", "audio"):
        return resolve(table.spec, **options, read_files=group.read_files)
    return group.from_first(lambda: resolve(table.spec, **options))


def images_as_taken(table: DataTable, takes: Sequence[Sequence[Dim] | None]) -> DataTable:
    """The table with the image size and channels that a model takes, where they are not chosen.

    Args:
        table: what to read.
        takes: the shapes of the model's inputs; the first [N, C, H, W] with known extents counts.
    """
    kind = _kind(table.spec)
    if kind not in ("images", "idx", "digits"):
        return table
    for shape in takes:
        if shape is None or len(shape) != 4:
            continue
        channels, height, width = shape[1:]
        found: dict[str, int] = {}
        if kind != "digits" and table.channels is None and channels in (1, 3):
            found["channels"] = channels
        if table.image_size is None and isinstance(height, int) and height == width:
            found["image_size"] = height
        return table.model_copy(update=found)
    return table


def align_classes(source: Source, names: Sequence[str] | None) -> Source:
    """The data with class numbers that mean what a model's class names say.

    Labels that have names are matched by name, since a folder or a file with fewer classes numbers them anew.

    Args:
        source: the data as read.
        names: the model's classes; None: it names none, and the numbers are taken as they are.

    Raises:
        DataError: a class that the model does not know; or labels that are identifiers.
    """
    test = None if source.test is None else _aligned(source.test, names)
    return Source(_aligned(source.dataset, names), test)


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
        DataError: the model's type has no equal of a number.
    """
    names = input_names(dataset, [spec.name for spec in specs])
    sources = {target: source for source, target in names.items()}
    return {
        spec.name: as_dtype(dataset.inputs[sources[spec.name]], spec.dtype, f"input {spec.name!r}")
        for spec in specs
    }


def input_names(dataset: Dataset, inputs: Sequence[str]) -> dict[str, str]:
    """The model's input for each of the data set's that it takes: by name, or the only one.

    Raises:
        ConfigError: the names do not fit.
    """
    have = [name for name in dataset.inputs if not name.endswith(".target")]
    if dataset.table and len(inputs) == 1:
        return dict.fromkeys(have, inputs[0])
    if len(inputs) == 1 and len(have) == 1:
        return {have[0]: inputs[0]}
    if missing := [name for name in inputs if name not in have]:
        raise ConfigError(
            f"the model takes {', '.join(inputs)}, data {dataset.name!r} has "
            f"{', '.join(have)}: {missing[0]!r} is missing"
        )
    return {name: name for name in inputs}


def _aligned(data: Dataset, names: Sequence[str] | None) -> Dataset:
    single = data.targets is not None and (data.targets.ndim == 1 or data.targets.shape[1:] == (1,))
    if data.task == "regression" or not single:
        return data
    if data.classes is None:
        count = data.class_count or 0
        if count > max(_MANY_CLASSES, len(data)):
            raise DataError(
                f"data set {data.name!r}: label {count - 1} would make {count} classes "
                f"of {len(data)} samples; number the classes 0, 1, ..., or say --task regression"
            )
        if names is not None and count <= len(names):
            return replace(data, classes=tuple(names))
        # a part may lack the highest class, and all parts must have the same classes
        return replace(data, classes=tuple(str(i) for i in range(count)))
    if names is None or tuple(names) == data.classes:
        return data
    if unknown := [name for name in data.classes if name not in names]:
        raise DataError(
            f"data set {data.name!r} has the class{'es' if len(unknown) > 1 else ''} "
            f"{', '.join(map(repr, unknown[:10]))}, which the model does not know; "
            f"its classes are {', '.join(names[:20])}"
        )
    assert data.targets is not None
    places = np.array([list(names).index(name) for name in data.classes], dtype=np.int64)
    return replace(data, targets=places[data.targets], classes=tuple(names))


def known_columns(preparation: Preparation) -> dict[str, Any]:
    """What `read_data` has to know of a table, from the preparation of a model."""
    table = preparation.table
    if table is None:
        return {"columns": preparation.columns}
    dropped = [plan.name for plan in table.columns if plan.name not in table.names]
    return {"columns": table.names, "kinds": table.kinds, "unsaid": dropped}


def digest_of(dataset: Dataset, preparation: Preparation) -> str:
    """The hash of a data set; of a table, of the columns that a model takes."""
    table = preparation.table
    return (dataset if table is None else dataset.with_inputs(table.raw(dataset))).digest()


def plain_numbers(source: Source) -> Source:
    """A table as one input of float32, for a network that takes numbers as they are.

    Raises:
        DataError: a column holds texts, or a number is missing.
    """

    def plain(data: Dataset) -> Dataset:
        if len(data.inputs) != 1 or next(iter(data.inputs.values())).dtype.kind != "f":
            name = next(name for name, a in data.inputs.items() if a.dtype.kind == "O")
            raise DataError(f"data set {data.name!r}: column {name!r} holds texts, the model takes numbers")
        (name, matrix), columns = next(iter(data.inputs.items())), data.columns or ()
        if np.isnan(matrix).any():
            row, place = np.argwhere(np.isnan(matrix))[0]
            raise DataError(
                f"data set {data.name!r}: row {row + 1}, column {columns[place]!r}: the value is missing, "
                "and the model does not say what stands in for it"
            )
        return replace(data, inputs={name: as_dtype(matrix, np.dtype(np.float32), "the table")}, table=False)

    return Source(plain(source.dataset), None if source.test is None else plain(source.test))


def _asked_kinds(table: DataTable) -> dict[str, str] | None:
    kinds = {"number": "number", "category": "text", "date": "text"}
    asked = {
        name: "text" if "encode" in each else kinds.get(str(each.get("kind")))
        for name, each in table.columns.items()
    }
    return {name: kind for name, kind in asked.items() if kind is not None} or None


def _kind(spec: Any) -> str:
    return split_spec(str(spec))[0]
