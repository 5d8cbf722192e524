"""What the targets of a model's output are, and the loss and the metrics that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import onnx_ir as ir

from onward.data import Dataset
from onward.errors import ConfigError
from onward.graph import Array, Dim, dims_of
from onward.train.label_metrics import Adapted, LabelScore
from onward.train.losses import BinaryCrossEntropy, CrossEntropy, Loss
from onward.train.metrics import Metric, create_metric

__all__ = [
    "TargetKind",
    "Task",
    "advice",
    "default_metrics",
    "describe",
    "infer_task",
    "metric_for",
    "metric_of",
]

TargetKind = Literal[
    "regression", "binary", "multi-class", "one-hot", "multi-label", "sequence labels", "dense labels"
]

_NUMBERS = ("mae", "mse", "rmse", "r2")
_WORDS = {
    "regression": "value",
    "multi-label": "label",
}


@final
@dataclass(frozen=True)
class Task:
    """The targets of one output.

    Attributes:
        kind: "regression": numbers. "binary": two classes. "multi-class": one of several. "one-hot": the
            same, written as a row of 0 with one 1. "multi-label": each of several labels holds or not.
            "sequence labels": a class for each position, [N, T]. "dense labels": for each pixel, [N, H, W].
        count: how many values, classes or labels there are.
        axis: of the classes in the output: 1, or -1 where they come last.
    """

    kind: TargetKind
    count: int
    axis: int = 1

    def __str__(self) -> str:
        word = _WORDS.get(self.kind, "class")
        plural = word if self.count == 1 else "classes" if word == "class" else word + "s"
        return f"{self.kind}, {self.count:,} {plural}" + (", on the last axis" if self.axis == -1 else "")

    @property
    def loss(self) -> str:
        """The name of the loss that is used where none is chosen."""
        if self.kind == "regression":
            return "mse"
        return "binary_cross_entropy" if self.kind == "multi-label" else "cross_entropy"

    def fitted(self, dataset: Dataset, loss: Loss) -> Dataset:
        """The data set with targets in the form that the loss takes.

        Cross-entropy takes class numbers, all others numbers of the output's shape: one-hot rows become class
        numbers for it, and class numbers of two classes a column [N, 1] for binary cross-entropy.
        """
        targets = dataset.targets
        if targets is None:
            return dataset
        if isinstance(loss, CrossEntropy):
            if self.kind == "one-hot":
                return replace(dataset, targets=targets.argmax(axis=1), task="classification")
            if self.kind in ("binary", "multi-class") and targets.ndim == 2 and targets.shape[1] == 1:
                return replace(dataset, targets=targets[:, 0])
            return dataset
        if isinstance(loss, BinaryCrossEntropy) and targets.ndim == 1:
            return replace(dataset, targets=targets[:, None])
        return dataset


def infer_task(dataset: Dataset, output: Sequence[Dim] | None = None, targets: Array | None = None) -> Task:
    """What the targets of a data set are, given the shape of the output that is trained on them.

    Args:
        dataset: it must have targets, or `targets` must be given.
        output: the output's extents; None where the network is yet to be made.
        targets: those of another output, in place of the data set's own.

    Raises:
        ConfigError: the targets fit no output of this shape.
    """
    own = targets is None
    values = dataset.targets if targets is None else targets
    if values is None:
        raise ConfigError(f"data set {dataset.name!r} has no targets")
    if (dataset.task == "regression") if own else (values.dtype.kind == "f"):
        return Task("regression", int(np.prod(values.shape[1:])))
    count = dataset.class_count if own and dataset.class_count is not None else int(values.max()) + 1
    rank = None if output is None else len(output)
    single = values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)
    if single and rank in (None, 1, 2):
        return Task("binary" if count == 2 else "multi-class", count)
    shape = tuple(values.shape[1:])
    if values.ndim == 2 and rank in (None, 2):
        if set(np.unique(values)) <= {0, 1}:
            rows = values.sum(axis=1)
            return Task("one-hot" if (rows == 1).all() else "multi-label", values.shape[1])
        raise ConfigError(
            f"data set {dataset.name!r}: integer targets [N, {values.shape[1]}] are labels only where all "
            "are 0 or 1; for classes of positions the model's output must be [N, T, C], for numbers say "
            "--task regression"
        )
    if rank == values.ndim + 1 and output is not None:
        last = _agree(shape, output[1:-1]) and _room(output[-1], count)
        first = _agree(shape, output[2:]) and _room(output[1], count)
        if last or first:
            kind: TargetKind = "sequence labels" if values.ndim == 2 else "dense labels"
            classes = output[-1 if last else 1]
            return Task(kind, classes if isinstance(classes, int) else count, -1 if last else 1)
    dims = ", ".join(("N", *map(str, shape)))
    have = "unknown" if output is None else f"[{', '.join(map(str, output))}]"
    raise ConfigError(
        f"data set {dataset.name!r}: class targets [{dims}] do not fit the output's shape, which is {have}"
    )


def metric_for(name: str, loss: Loss, output: ir.Value) -> Metric:
    """The metric of this name, as it is meant for what a loss compares an output with.

    With binary cross-entropy over several columns, `accuracy` and the like are of labels that hold or not;
    with losses of numbers, such as the mean squared error, targets are one-hot rows, or a column of 0 and 1.

    Raises:
        ConfigError: the name is unknown, or means nothing for such targets: an error of numbers where there
            are classes.
    """
    dims = dims_of(output)
    if isinstance(loss, CrossEntropy):
        _refuse_numbers(name, "classes")
        metric = create_metric(name, ignore_index=loss.ignore_index)
        if loss.axis == 1:
            return metric
        return Adapted(metric, _classes_first)
    if isinstance(loss, BinaryCrossEntropy):
        _refuse_numbers(name, "labels")
        # what the sigmoid gives lies between 0 and 1
        threshold = 0.0 if loss.output(output) is output else 0.5
        if dims is not None and len(dims) > 1 and dims[1] != 1:
            return _label_metric(name, threshold)
        return _with_threshold(name, threshold)
    if name in _NUMBERS:
        return create_metric(name)
    if dims is not None and len(dims) > 1 and dims[1] != 1:
        return Adapted(create_metric(name), _from_one_hot)
    return _with_threshold(name, 0.5)


def metric_of(task: Task, name: str, threshold: float = 0.0, *, ignore_index: int | None = None) -> Metric:
    """The metric of this name for a task: of outputs with classes on axis 1, and of class numbers.

    Raises:
        ConfigError: the name is unknown, or means nothing for the task.
    """
    if task.kind == "regression":
        if name not in _NUMBERS:
            raise ConfigError(
                f"metric {name!r} is for classes, the targets are numbers; choose mae, rmse or r2"
            )
        return create_metric(name)
    _refuse_numbers(name, "labels" if task.kind == "multi-label" else "classes")
    if task.kind == "multi-label":
        return _label_metric(name, threshold)
    return _with_threshold(name, threshold, ignore_index)


def advice(dataset: Dataset, output: ir.Value, loss: Loss) -> str:
    """What to do where a loss does not take a data set's targets: a half sentence, or nothing."""
    try:
        task = infer_task(dataset, dims_of(output))
    except ConfigError:
        return ""
    named = "; the classes are on the last axis: CrossEntropy(axis=-1)"
    if not isinstance(loss, CrossEntropy):
        if task.kind in ("regression", "one-hot", "multi-label"):
            return ""
        return named if task.axis == -1 else "; choose cross_entropy"
    if task.kind == "one-hot":
        return "; they are one-hot rows: targets.argmax(axis=1) are the class numbers that it takes"
    if task.kind == "multi-label":
        return "; several labels of a sample hold at once: choose binary_cross_entropy"
    if dataset.targets is not None and dataset.targets.shape[1:] == (1,):
        return "; targets[:, 0] are the class numbers that it takes"
    return named if task.axis != loss.axis and task.axis == -1 else ""


def default_metrics(task: Task) -> tuple[str, ...]:
    """The metrics that are shown where none are chosen."""
    if task.kind == "regression":
        return ("mae",)
    return ("accuracy", "f1") if task.kind == "multi-label" else ("accuracy",)


def describe(tasks: Mapping[str, Task], losses: Mapping[str, str], metrics: Sequence[str]) -> str:
    """One line: `task: multi-label, 3 labels; loss: binary_cross_entropy; metrics: accuracy, f1`."""
    shown = ", ".join(metrics) or "none"
    if len(tasks) == 1:
        name = next(iter(tasks))
        return f"task: {tasks[name]}; loss: {losses[name]}; metrics: {shown}"
    parts = "; ".join(f"{name}: {task}, loss {losses[name]}" for name, task in tasks.items())
    return f"tasks: {parts}; metrics of {next(iter(tasks))}: {shown}"


def _agree(shape: Sequence[int], dims: Sequence[Dim]) -> bool:
    return len(shape) == len(dims) and all(
        not isinstance(d, int) or d == s for s, d in zip(shape, dims, strict=True)
    )


def _room(extent: Dim, count: int) -> bool:
    return not isinstance(extent, int) or extent >= count


def _refuse_numbers(name: str, what: str) -> None:
    if name in _NUMBERS:
        raise ConfigError(
            f"metric {name!r} is for numbers, the targets are {what}; choose accuracy, f1 or the like"
        )


def _with_threshold(name: str, threshold: float, ignore_index: int | None = None) -> Metric:
    options = {} if name.startswith("top") else {"threshold": threshold}
    return create_metric(name, ignore_index=ignore_index, **options)


def _label_metric(name: str, threshold: float) -> Metric:
    if name in ("accuracy", "subset_accuracy"):
        return LabelScore(name, threshold=threshold)  # type: ignore[arg-type]
    measure, _, suffix = name.partition("_")
    averages = {"": "macro", "micro": "micro", "weighted": "weighted", "per_class": "none"}
    if measure in ("precision", "recall", "f1") and suffix in averages and not name.endswith("_"):
        return LabelScore(measure, averages[suffix], threshold=threshold)  # type: ignore[arg-type]
    raise ConfigError(
        f"metric {name!r} is none of samples with several labels; there are accuracy (share of labels that "
        "are right), subset_accuracy (of samples), precision, recall and f1, each also _micro, _weighted, "
        "_per_class"
    )


def _classes_first(outputs: Array, targets: Array) -> tuple[Array, Array]:
    return np.moveaxis(outputs, -1, 1), targets


def _from_one_hot(outputs: Array, targets: Array) -> tuple[Array, Array]:
    if targets.ndim != outputs.ndim:
        return outputs, targets
    wrong = (targets != 0).sum(axis=1) != 1
    if wrong.any():
        raise ConfigError(
            "accuracy and the like need targets that are classes: each row 0 but for one place; "
            "for labels that hold or not choose binary_cross_entropy, for numbers mae or r2"
        )
    return outputs, targets.argmax(axis=1)
