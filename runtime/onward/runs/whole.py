"""A run on batches that are given whole: graphs, and whatever else has no common sample axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from onward.data import Dataset, Splits, WholeBatches, load_batches, split
from onward.data.registry import split_spec
from onward.errors import ConfigError
from onward.graph import Array
from onward.runs.config import DataTable, RunConfig

__all__ = ["Whole", "answered", "open_whole", "refuse_divided"]

Run = Callable[[Mapping[str, Array]], Array]
"""From a batch's inputs to the output that is measured."""


@final
@dataclass(frozen=True, eq=False)
class Whole:
    """Whole batches, divided.

    Attributes:
        every: all of them.
        parts: for training, validation and test; None where there are none.
    """

    every: WholeBatches
    parts: tuple[WholeBatches, WholeBatches | None, WholeBatches | None]

    def samples(self) -> Splits:
        """The first batch of each part."""
        train, validation, test = self.parts
        held = [None if part is None else part.sample for part in (validation, test)]
        return Splits(train.sample, *held)


def open_whole(table: DataTable, ignore_index: int | None = None, seed: int = 0) -> Whole | None:
    """The data `batches:FOLDER`, an .npz file for each batch; None where data are of another kind.

    Args:
        table: which array is the target (y), which holds weights, and how batches are divided.
        ignore_index: the label of targets that do not count.
        seed: of the order of training batches.

    Raises:
        DataError, StorageError: they cannot be read.
    """
    kind, place = split_spec(table.spec)
    if kind != "batches" or not place:
        return None
    if isinstance(table.target, tuple):
        raise ConfigError("whole batches have one array of targets: --target NAME")
    given = load_batches(place, table.target or "y", weight=table.weight)
    targets = [np.asarray(batch[1]) for batch in given]
    floats = any(each.dtype.kind == "f" for each in targets)
    task = table.task or ("regression" if floats else "classification")
    classes = None
    if task == "classification" and all(each.dtype.kind in "iu" and each.size for each in targets):
        counted = [each if ignore_index is None else each[each != ignore_index] for each in targets]
        classes = [str(i) for i in range(int(max(each.max(initial=-1) for each in counted)) + 1)]
    ignored = ignore_index if task == "classification" else None

    def batches(places: Array | range, *, shuffle: bool) -> WholeBatches:
        chosen = [given[int(place)] for place in places]
        return WholeBatches(
            chosen,
            seed=seed,
            shuffle=shuffle,
            task=task,
            ignore_index=ignored,
            classes=classes,
            name=table.spec,
        )

    rows = Dataset({"row": np.arange(len(given))}, name=table.spec)
    divided = split(rows, table.split, table.split_seed)
    validation, test = (
        None if part is None else batches(part.inputs["row"], shuffle=False)
        for part in (divided.validation, divided.test)
    )
    train = batches(divided.train.inputs["row"], shuffle=True)
    return Whole(batches(range(len(given)), shuffle=False), (train, validation, test))


def refuse_divided(config: RunConfig) -> None:
    """Refuse options that need samples.

    Raises:
        ConfigError: names the option.
    """
    data, fields = config.data, config.model_fields_set
    for given, option in (
        ("batch_size" in fields, "--batch-size"),
        (config.base_batch is not None, "--base-batch"),
        (config.folds is not None, "--folds"),
        (data.augment is not None, "--augment"),
        (data.group is not None, "--group"),
        (data.time is not None, "--time"),
        (bool(config.model.sample_axis), "--sample-axis"),
        (config.distillation.teacher is not None, "--teacher"),
        (config.loss.class_weights == "balanced", "--class-weights balanced"),
    ):
        if given:
            raise ConfigError(f"{option} needs data in samples; {data.spec} has whole batches")


def answered(run: Run, batches: WholeBatches) -> tuple[Array, Dataset]:
    """A model's output for whole batches, one after the other, and what it is measured against."""
    outputs = [run(batch.inputs) for batch in batches.batches]
    sample, targets = batches.sample, [batch.targets for batch in batches.batches]
    found = np.concatenate([each for each in targets if each is not None])
    for output, batch in zip(outputs, batches.batches, strict=True):
        if output.shape[:1] != (len(batch),):
            raise ConfigError(
                f"{batch.name}: {len(batch)} targets, but the output has shape {list(output.shape)}: each "
                "position of its first axis has a target"
            )
    places = {"row": np.arange(len(found))}
    return np.concatenate(outputs), Dataset(
        places,
        found,
        classes=sample.classes,
        name=sample.name,
        task=sample.task,
        ignore_index=sample.ignore_index,
    )
