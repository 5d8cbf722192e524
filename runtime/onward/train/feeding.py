"""What a training step takes, from what a person has: arrays, dictionaries, data sets, loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onward.data import ArrayRows, Batch, Batches, Dataset, Kind, as_dtype
from onward.errors import ConfigError, DataError, InputError
from onward.graph import Array, TensorSpec, dims_of
from onward.train.losses import CrossEntropy, Loss
from onward.train.task import advice

__all__ = [
    "Inputs",
    "Samples",
    "array_of",
    "as_dataset",
    "check_dataset",
    "check_labels",
    "check_some_count",
    "feeder",
    "kind_for",
    "named_inputs",
    "parts_of",
    "rows_of",
    "split_off",
]

Inputs: TypeAlias = "Array | Mapping[str, Array]"
"""An array [N, ...] for a model of one input, or one by the name of each."""

Many: TypeAlias = "Iterable[Any] | Callable[..., Any]"

Samples: TypeAlias = "Batches | Dataset | tuple[Inputs, Array] | tuple[Inputs, Array, Array] | Many"
"""Data with targets: a loader, a data set, (inputs, targets) and maybe how much each sample counts, or what
`onward.data.batches_of` takes: rows, a map-style data set, a generator or iterable of batches."""


def as_dataset(
    inputs: Inputs | Dataset,
    targets: Array | None,
    sample_weight: Array | None,
    specs: Sequence[TensorSpec],
    losses: Mapping[str, Loss],
) -> Dataset:
    """A data set of what is given.

    Args:
        inputs: a data set, or arrays [N, ...].
        targets: [N, ...] of the first loss; None where `inputs` is a data set.
        sample_weight: [N].
        specs: of the model's inputs.
        losses: by output.

    Raises:
        ConfigError: targets are missing, or given twice.
        DataError: arrays that are no samples with targets.
    """
    if isinstance(inputs, Dataset):
        if targets is not None:
            raise ConfigError("a data set has its own targets: give no others beside it")
        return inputs if sample_weight is None else replace(inputs, weights=np.asarray(sample_weight))
    if targets is None:
        raise ConfigError("there are no targets: give inputs and targets, or a data set")
    loss = next(iter(losses.values()))
    ignored = loss.ignore_index if isinstance(loss, CrossEntropy) else None
    arrays = inputs if isinstance(inputs, Mapping) else {specs[0].name: inputs}
    return Dataset(
        {name: array_of(name, values) for name, values in arrays.items()},
        np.asarray(targets),
        task="classification" if isinstance(loss, CrossEntropy) else "regression",
        ignore_index=ignored,
        weights=None if sample_weight is None else np.asarray(sample_weight),
    )


def parts_of(
    samples: tuple[Inputs, Array] | tuple[Inputs, Array, Array], weights: Array | None = None
) -> tuple[Inputs, Array, Array | None]:
    """Inputs, targets and sample weights of a tuple; `weights` where it has none.

    Raises:
        ConfigError: a tuple of another length, or weights given twice.
    """
    if not isinstance(samples, tuple) or len(samples) not in (2, 3):
        raise ConfigError("samples are a loader, a data set, (inputs, targets), or these and sample weights")
    if len(samples) == 2:
        return samples[0], samples[1], weights
    if weights is not None:
        raise ConfigError("there are sample weights in the tuple, and others beside it: give one of them")
    return samples


def split_off(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """The samples before, and the last `fraction` of them: as Keras's `validation_split` does.

    Raises:
        ConfigError: a fraction outside of 0 to 1, or one that leaves a part empty.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"validation_split must be between 0 and 1, got {fraction}")
    first = int(len(dataset) * (1 - fraction))
    if not 0 < first < len(dataset):
        raise ConfigError(f"validation_split={fraction} of {len(dataset)} samples leaves one part empty")
    return dataset.take(np.arange(first)), dataset.take(np.arange(first, len(dataset)))


def array_of(name: str, values: Any) -> Array:
    """Values as an array.

    Raises:
        InputError: they are ragged.
    """
    try:
        return np.asanyarray(values)
    except ValueError as error:
        raise InputError(f"input {name!r}: not an array: {error}") from None


def feeder(
    dataset: Dataset,
    inputs: Sequence[TensorSpec],
    targets: Mapping[str, str],
    step_inputs: Sequence[TensorSpec],
    sample_weight: str | None,
) -> Callable[[Batch], dict[str, Array]]:
    """A function from batches to the arrays that a step takes.

    Args:
        dataset: where batches come from.
        inputs: what the model takes.
        targets: for each output with a loss the input that takes its targets, the data set's own first.
        step_inputs: what the step takes.
        sample_weight: the input that says how much each sample counts, if there is one.

    Raises:
        ConfigError: the data set lacks an input or targets.
    """
    names = {spec.name: source for spec, source in zip(inputs, _sources(dataset, inputs), strict=True)}
    if dataset.targets is None:
        raise ConfigError(f"data set {dataset.name!r} has no targets")
    dtypes = {spec.name: spec.dtype for spec in step_inputs}
    first, *others = targets
    if missing := [f"{name}.target" for name in others if f"{name}.target" not in dataset.inputs]:
        raise ConfigError(
            f"data set {dataset.name!r} has no input {missing[0]!r}, which the loss of that output needs"
        )

    def feed(batch: Batch) -> dict[str, Array]:
        if dataset.weights is None and batch.weights is not None:
            raise DataError(
                f"data set {dataset.name!r}: there are sample weights in a later batch and none in the first"
            )
        arrays = {
            name: as_dtype(batch.inputs[source], dtypes[name], f"input {name!r}")
            for name, source in names.items()
        }
        if batch.targets is not None:
            arrays[targets[first]] = as_dtype(batch.targets, dtypes[targets[first]], "the targets")
        for output in others:
            name = f"{output}.target"
            arrays[targets[output]] = as_dtype(batch.inputs[name], dtypes[targets[output]], f"input {name!r}")
        if sample_weight is not None:
            one = np.ones(len(batch), np.float32)
            arrays[sample_weight] = one if batch.weights is None else batch.weights
        return arrays

    return feed


def check_dataset(dataset: Dataset, output: ir.Value, loss: Loss, target: TensorSpec) -> None:
    """Refuse targets that the loss of an output does not take.

    Args:
        dataset: it has targets.
        output: of the model.
        loss: of this output.
        target: the step's input for its targets.

    Raises:
        ConfigError: targets of another kind or shape.
        DataError: a label out of range.
    """
    _check_labels(dataset, output, loss)
    targets = dataset.targets
    if targets is None or target.admits((len(targets), *targets.shape[1:])):
        return
    hint = advice(dataset, output, loss)
    raise ConfigError(
        f"{type(loss).__name__} of output {output.name!r} needs targets {target}, data set "
        f"{dataset.name!r} has targets of shape {['N', *targets.shape[1:]]}".replace("'N'", "N")
        + hint
    )


def check_labels(
    targets: Array | None, row: Callable[[int], int], output: ir.Value, loss: Loss, name: str
) -> None:
    """Refuse labels that the output has no class for.

    Args:
        targets: of a batch, or of all samples.
        row: the number by which a message names the sample in a place.
        output: of the model.
        loss: of this output.
        name: of the data set.

    Raises:
        DataError: names the row.
    """
    dims = dims_of(output)
    if not isinstance(loss, CrossEntropy) or dims is None or targets is None:
        return
    classes = dims[loss.axis]
    if not isinstance(classes, int):
        return
    bad = (targets < 0) | (targets >= classes)
    if loss.ignore_index is not None:
        bad &= targets != loss.ignore_index
    if bad.any():
        place = int(np.argwhere(bad)[0][0])
        raise DataError(
            f"data set {name!r}, row {row(place)}: label {targets[bad].ravel()[0]} is out of range; "
            f"output {output.name!r} has {classes} classes"
        )


def kind_for(losses: Mapping[str, Loss]) -> Kind:
    """What targets mean to the first loss."""
    loss = next(iter(losses.values()))
    if isinstance(loss, CrossEntropy):
        return Kind("classification", ignore_index=loss.ignore_index)
    return Kind("regression")


def rows_of(inputs: Any, targets: Any, weights: Any, name: str) -> ArrayRows | None:
    """Rows that are read from files as they are needed, where inputs are `numpy.memmap`; None: they are not.

    Args:
        inputs: an array, or arrays by name.
        targets, weights: arrays.
        name: of an input that has none of its own.
    """
    arrays = inputs if isinstance(inputs, Mapping) else {name: inputs}
    if targets is None or not any(isinstance(each, np.memmap) for each in arrays.values()):
        return None
    return ArrayRows(arrays, targets, weights)


def check_some_count(dataset: Dataset, losses: Mapping[str, Loss]) -> None:
    """Refuse data of which no sample counts.

    Raises:
        DataError: all weights are 0, or all labels are ignored.
    """
    if dataset.weights is not None and not dataset.weights.any():
        raise DataError(f"data set {dataset.name!r}: every sample weighs 0; there is nothing to train on")
    loss = next(iter(losses.values()))
    ignored = loss.ignore_index if isinstance(loss, CrossEntropy) else None
    if ignored is None or dataset.targets is None or len(losses) > 1:
        return
    if bool((dataset.targets == ignored).all()):
        raise DataError(
            f"data set {dataset.name!r}: every label is {ignored}, which the loss ignores; there is "
            "nothing to train on"
        )


def named_inputs(dataset: Dataset, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """A data set's inputs by the model's names, in its element types."""
    sources = _sources(dataset, specs)
    return {
        spec.name: as_dtype(dataset.inputs[source], spec.dtype, f"input {spec.name!r}")
        for spec, source in zip(specs, sources, strict=True)
    }


def _check_labels(dataset: Dataset, output: ir.Value, loss: Loss) -> None:
    dims, targets = dims_of(output), dataset.targets
    if not isinstance(loss, CrossEntropy) or dims is None or targets is None:
        return
    if dataset.task != "classification":
        raise ConfigError(
            f"cross-entropy needs class labels, but data set {dataset.name!r} is for regression; "
            "choose a loss such as mse"
        )
    if dataset.ignore_index is not None and dataset.ignore_index != loss.ignore_index:
        raise ConfigError(
            f"data set {dataset.name!r} says that label {dataset.ignore_index} does not count, the loss "
            f"has ignore_index={loss.ignore_index}; give CrossEntropy ignore_index={dataset.ignore_index}"
        )
    classes = dims[loss.axis]
    if not isinstance(classes, int):
        return
    if dataset.classes is not None and len(dataset.classes) != classes:
        raise ConfigError(
            f"data set {dataset.name!r} has {len(dataset.classes)} classes, output {output.name!r} has "
            f"{classes}; Trainer(..., head={len(dataset.classes)}) puts a new last layer on the model"
        )
    check_labels(targets, dataset.row, output, loss, dataset.name)


def _sources(dataset: Dataset, specs: Sequence[TensorSpec]) -> list[str]:
    """For each model input the data set's input that feeds it: by name, or the only one."""
    have = [name for name in dataset.inputs if not name.endswith(".target")]
    if all(spec.name in have for spec in specs):
        return [spec.name for spec in specs]
    if len(specs) == 1 and len(have) == 1:
        return have
    raise ConfigError(
        f"the model takes {', '.join(s.name for s in specs)}, data set {dataset.name!r} has "
        f"{', '.join(have)}; give them equal names"
    )
