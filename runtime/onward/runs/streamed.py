"""A run on data that stay in their files: what is measured of them in passes, and how they are served."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from onward.data import (
    ArrayRows,
    Dataset,
    Kind,
    ParquetRows,
    PartRows,
    Preparation,
    Rows,
    Splits,
    StreamLoader,
    fit_in_one_pass,
    open_npy,
    parse_augmentation,
    split,
)
from onward.data.registry import split_spec
from onward.errors import ConfigError, DataError
from onward.graph import Array
from onward.parallel import Group
from onward.runs.assembly import Targets
from onward.runs.config import DataTable, RunConfig
from onward.train import balanced_class_weights

__all__ = ["Streamed", "open_stream"]

_FEW_CLASSES = 20
_SHOWN = 4096
_TARGETS = ("target", "label", "class", "y", "outcome", "response")
_STREAMED_BYTES = 1 << 30
"""A table of numbers that would take more than this in memory is read while it is trained on."""


@final
@dataclass(frozen=True, eq=False)
class Streamed:
    """Data that are read batch by batch, divided.

    Attributes:
        rows: all of them.
        kind: what the targets mean.
        parts: where training, validation and test samples stand, ascending; None where there are none.
        targets: of all samples.
        columns: of a table of numbers, those behind axis 1 of its input.
        notes: what its user should know.
    """

    rows: Rows
    kind: Kind
    parts: tuple[Array, Array | None, Array | None]
    targets: Array
    columns: tuple[str, ...] | None
    notes: tuple[str, ...]

    def part(self, number: int) -> PartRows | None:
        """The training (0), validation (1) or test part (2)."""
        indices = self.parts[number]
        return None if indices is None else PartRows(self.rows, indices)

    def sample(self, number: int = 0, count: int = _SHOWN) -> Dataset:
        """The first samples of a part, as read."""
        part = self.part(number)
        assert part is not None
        first = np.arange(min(count, len(part)))
        found = self.kind.dataset(part.read(first), self.rows.name, part.numbers(first))
        return replace(found, columns=self.columns)

    def samples(self) -> Splits:
        """The first samples of each part."""
        held = [None if self.parts[number] is None else self.sample(number) for number in (1, 2)]
        return Splits(self.sample(), *held)

    def prepare(
        self, config: RunConfig, known: Preparation, untouched: list[str], group: Group | None = None
    ) -> Preparation:
        """Measure the training part in one pass, each rank some of it; what a model knows already is kept."""
        if known.numbers:
            return known
        loader = StreamLoader(
            PartRows(self.rows, self.parts[0]),
            max(config.batch_size, 256),
            shuffle=False,
            kind=self.kind,
            prefetch=config.prefetch,
            workers=config.workers,
        )
        return fit_in_one_pass(
            loader,
            normalise=config.data.normalise,
            untouched=untouched,
            columns=self.columns,
            rank=0 if group is None else group.rank,
            ranks=1 if group is None else group.size,
            gather=None if group is None else group.gather,
        )

    def loader(
        self, config: RunConfig, number: int, preparation: Preparation, targets: Targets
    ) -> StreamLoader | None:
        """Serves a part as the network and the losses take it; the training part shuffled and augmented."""
        rows, training = self.part(number), number == 0
        if rows is None:
            return None
        augment = config.data.augment if training else None
        return StreamLoader(
            rows,
            config.batch_size if training else max(config.batch_size, 256),
            config.seed,
            shuffle=training,
            kind=self.kind,
            transform=_Prepare(preparation, targets),
            augment=None if augment is None else parse_augmentation(augment),
            prefetch=config.prefetch,
            workers=config.workers,
        )

    def weigh_classes(self, config: RunConfig) -> RunConfig:
        """The configuration with balanced class weights as numbers, of all training samples."""
        labels = self.targets[self.parts[0]]
        if config.loss.class_weights != "balanced" or labels.ndim != 1 or self.kind.classes is None:
            return config
        labels = labels[labels != self.kind.ignore_index] if self.kind.ignore_index is not None else labels
        weights = balanced_class_weights(labels, len(self.kind.classes))
        loss = config.loss.model_copy(update={"class_weights": tuple(map(float, weights))})
        return config.model_copy(update={"loss": loss})

    def digest(self) -> str:
        """What `Dataset.digest` gives of the same samples in memory."""
        shown = self.sample(count=1)
        digest = hashlib.sha256()
        for name in sorted(shown.inputs):
            _begin(digest, "input " + name, shown.inputs[name], len(self.rows))
            for block in self._blocks():
                digest.update(_bytes(block.inputs[name], shown.inputs[name].dtype))
        assert shown.targets is not None
        _begin(digest, "targets", shown.targets, len(self.rows))
        for block in self._blocks():
            assert block.targets is not None
            digest.update(_bytes(block.targets, shown.targets.dtype))
        if shown.weights is not None:
            _begin(digest, "weights", shown.weights, len(self.rows))
            for block in self._blocks():
                digest.update(_bytes(block.weights, shown.weights.dtype))
        ignored = [] if self.kind.ignore_index is None else [self.kind.ignore_index]
        digest.update(json.dumps([shown.task, self.kind.classes, *ignored]).encode())
        return digest.hexdigest()

    def _blocks(self) -> Iterator[Any]:
        bounds = self.rows.blocks()
        assert bounds is not None
        for start, stop in itertools.pairwise(bounds):
            yield self.rows.read(np.arange(start, stop))


def open_stream(config: RunConfig) -> Streamed | None:
    """The data of a run that are read while it trains: `npy:FOLDER`, and large Parquet and Arrow files of
    numbers; None where the data are read whole.

    Raises:
        ConfigError: options that need the data in memory.
        DataError, StorageError: they cannot be read.
    """
    table = config.data
    kind, place = split_spec(table.spec)
    path = Path(place)
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    if kind == "npy":
        rows: ArrayRows | ParquetRows = open_npy(path)
    elif kind == "table" and (found := _large_table(table, path)) is not None:
        rows, notes = found
        columns = tuple(found[0].flat) if found[0].flat else None
    else:
        return None
    if config.folds is not None:
        raise ConfigError("--folds needs data in memory; these are read while they are trained on")
    targets = rows.all_targets()
    if targets is None:
        raise ConfigError(f"data {table.spec!r} have no targets: y.npy is missing")
    task = table.task
    classes = None
    if isinstance(rows, ParquetRows) and targets.ndim == 1 and targets.dtype.kind in "biu":
        values = np.unique(targets)
        if task is None:
            task = "classification" if len(values) <= _FEW_CLASSES else "regression"
        if task == "classification":
            rows = rows.with_classes(values)
            targets = np.searchsorted(values, targets)
            classes = tuple(str(value) for value in values.tolist())
    if task is None:
        task = "regression" if targets.dtype.kind == "f" else "classification"
    if classes is None and task == "classification" and targets.dtype.kind in "biu" and targets.ndim == 1:
        counted = (
            targets[targets != config.loss.ignore_index] if config.loss.ignore_index is not None else targets
        )
        classes = tuple(str(i) for i in range(int(counted.max(initial=-1)) + 1))
    meaning = Kind(task, classes, config.loss.ignore_index if task == "classification" else None)
    light = Dataset(
        {"row": np.arange(len(rows))},
        targets,
        classes=classes,
        name=rows.name,
        task=task,
        ignore_index=meaning.ignore_index,
    )
    divided = split(light, table.split, table.split_seed)
    indices = [
        None if part is None else part.inputs["row"]
        for part in (divided.train, divided.validation, divided.test)
    ]
    assert indices[0] is not None
    assert light.targets is not None
    size = f"{_size_of(kind, path) / 2**30:.1f} GiB"
    notes += (f"{table.spec}: {size} are read while the run goes on, {config.prefetch} batches ahead",)
    return Streamed(rows, meaning, (indices[0], indices[1], indices[2]), light.targets, columns, notes)


@final
@dataclass(frozen=True, eq=False)
class _Prepare:
    """From samples as read to those that the network and the losses take; goes to worker processes."""

    preparation: Preparation
    targets: Targets

    def __call__(self, dataset: Dataset) -> Dataset:
        if self.targets.first.kind == "one-hot" and dataset.targets is not None:
            wrong = dataset.targets.sum(axis=1) != 1
            if wrong.any():
                raise DataError(
                    f"data set {dataset.name!r}, row {dataset.row(int(np.argmax(wrong)))}: the targets are "
                    f"one-hot rows, this one has {int(dataset.targets[wrong][0].sum())} ones"
                )
        return self.targets.fitted(self.preparation.apply(dataset))


def _large_table(table: DataTable, path: Path) -> tuple[ParquetRows, tuple[str, ...]] | None:
    """A table of numbers that is too large to be read whole."""
    if path.suffix.lower() not in (".parquet", ".arrow", ".feather") or not path.is_file():
        return None
    if table.columns or table.group or table.time or isinstance(table.target, tuple):
        return None
    if path.stat().st_size * 2 < _STREAMED_BYTES:
        return None
    names = ParquetRows.columns_of(path)
    target = table.target
    notes: tuple[str, ...] = ()
    if target is None:
        target = next((n for wanted in _TARGETS for n in names if n.lower() == wanted), list(names)[-1])
        notes = (f"{path}: column {target!r} is predicted; --target chooses another",)
    used = [name for name in (table.include or names) if name not in (target, table.weight, *table.exclude)]
    if not all(names.get(name, "") for name in (*used, target)):
        return None
    return ParquetRows(path, target, inputs=used, weight=table.weight), notes


def _size_of(kind: str, path: Path) -> int:
    if kind == "npy":
        return sum(os.stat(file).st_size for file in path.iterdir() if file.suffix == ".npy")
    return path.stat().st_size


def _begin(digest: Any, label: str, array: Array, count: int) -> None:
    digest.update(json.dumps([label, array.dtype.newbyteorder("<").str, [count, *array.shape[1:]]]).encode())


def _bytes(array: Any, dtype: np.dtype[Any]) -> bytes:
    return np.ascontiguousarray(array, dtype=dtype.newbyteorder("<")).tobytes()
