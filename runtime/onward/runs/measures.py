"""How good a model is on a data set, and the tables that show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.data import Dataset
from onward.engine import Session
from onward.errors import ConfigError
from onward.graph import Array
from onward.runs.preparation import feeds_of
from onward.train import infer_task
from onward.train.task import metric_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Measures", "figures_text", "final_activation", "measure", "outputs_of"]

_SHOWN_CLASSES = 20
_NARROW = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_AVERAGED = ("accuracy", "precision", "recall", "f1")
_PER_CLASS = ("precision_per_class", "recall_per_class", "f1_per_class")
_LABELS = ("accuracy", "subset_accuracy", "precision", "recall", "f1")
_REGRESSION = ("mae", "rmse", "r2")


@final
@dataclass(frozen=True, eq=False)
class Measures:
    """Figures over a data set.

    Attributes:
        samples: how many it has.
        figures: scalar metrics by name.
        per_class: precision, recall and F1, each float64 [K]; empty for regression.
        confusion: int64 [K, K], rows the true classes; None for regression and for several labels a sample.
        classes: their names.
        support: how often each occurs, [K].
    """

    samples: int
    figures: Mapping[str, float]
    per_class: Mapping[str, Array] = field(default_factory=dict)
    confusion: Array | None = None
    classes: tuple[str, ...] = ()
    support: Array | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        result: dict[str, Any] = {"samples": self.samples, **self.figures}
        result |= {name: array.tolist() for name, array in self.per_class.items()}
        if self.support is not None:
            result |= {"classes": list(self.classes), "support": self.support.tolist()}
        if self.confusion is not None:
            result["confusion_matrix"] = self.confusion.tolist()
        return result

    def show(self, console: Console, title: str) -> None:
        """Write the tables: figures by class, averages, the confusion matrix."""
        for heading, table in self._tables(title):
            console.print(heading, soft_wrap=True)
            console.print(table)
        if self.support is not None:
            console.print(figures_text(self.figures), soft_wrap=True)

    def _tables(self, title: str) -> Iterator[tuple[str, Table]]:
        from rich.table import Table

        heading = f"{title}: {self.samples:,} sample{'' if self.samples == 1 else 's'}"
        if self.support is None:
            table = Table()
            table.add_column("metric")
            table.add_column("value", justify="right")
            for name, value in self.figures.items():
                table.add_row(name, f"{value:.6g}")
            yield heading, table
            return
        table = Table()
        table.add_column("class" if self.confusion is not None else "label")
        for name in ("precision", "recall", "F1", "samples"):
            table.add_column(name, justify="right")
        for i in range(min(len(self.classes), _SHOWN_CLASSES)):
            scores = [f"{self.per_class[name][i]:.4f}" for name in _PER_CLASS]
            table.add_row(self.classes[i], *scores, f"{self.support[i]:,}")
        if (more := len(self.classes) - _SHOWN_CLASSES) > 0:
            table.add_row(f"… {more} more", "", "", "", "")
        yield heading, table
        if self.confusion is not None and len(self.classes) <= _SHOWN_CLASSES:
            yield "Confusion matrix (rows: true classes)", _confusion_table(self.confusion, self.classes)


def figures_text(figures: Mapping[str, float]) -> str:
    """`accuracy 0.9833  loss 0.0512`."""
    return "  ".join(f"{name} {value:.4f}" for name, value in figures.items())


def measure(
    outputs: Array,
    dataset: Dataset,
    *,
    classes: Sequence[str] | None = None,
    extra: Sequence[str] = (),
    threshold: float = 0.0,
) -> Measures:
    """Figures of a model's first output [N, ...] against a data set's targets, as their task asks for.

    Args:
        classes: their names; by default those of the data set, or numbers.
        extra: further metrics by name; those that are no scalars are left out.
        threshold: of a single score a sample or label, see `onward.train.metrics`.

    Raises:
        ConfigError: the data set has no targets, or a metric is unknown.
        DataError: outputs and targets do not fit together.
    """
    targets = dataset.targets
    if targets is None:
        raise ConfigError(f"data set {dataset.name!r} has no targets to measure against")
    task = infer_task(dataset, ("N", *outputs.shape[1:]))
    if task.kind == "one-hot":
        targets = targets.argmax(axis=1)
    if task.axis == -1:
        outputs = np.moveaxis(outputs, -1, 1)
    averaged = {"regression": _REGRESSION, "multi-label": _LABELS}.get(task.kind, _AVERAGED)

    def result(name: str) -> float | Array:
        metric = metric_of(task, name, threshold, ignore_index=dataset.ignore_index)
        metric.update(outputs, targets)
        return metric.result()

    found = {name: result(name) for name in dict.fromkeys([*averaged, *extra])}
    figures = {name: value for name, value in found.items() if isinstance(value, float)}
    if task.kind == "regression":
        return Measures(len(dataset), figures)
    per_class = {name: np.asarray(result(name)) for name in _PER_CLASS}
    known = tuple(classes or dataset.classes or ())
    if task.kind == "multi-label":
        support = targets.reshape(len(targets), task.count, -1).sum(axis=(0, 2))
        return Measures(len(dataset), figures, per_class, None, _named(known, task.count), support)
    confusion = np.asarray(result("confusion_matrix"))
    return Measures(
        len(dataset), figures, per_class, confusion, _named(known, len(confusion)), confusion.sum(axis=1)
    )


def _named(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    return names if len(names) == count else tuple(str(i) for i in range(count))


def outputs_of(session: Session, dataset: Dataset, batch_size: int) -> Array:
    """A model's first output over a data set, in batches; 16-bit floats as float32.

    Raises:
        ConfigError: the data set's inputs are not the model's.
        InputError: shapes or dtypes do not fit.
    """
    feeds = feeds_of(dataset, session.inputs)
    name = session.outputs[0].name
    parts = [
        session.run({key: a[i : i + batch_size] for key, a in feeds.items()}, [name])[name]
        for i in range(0, len(dataset), batch_size)
    ]
    outputs = np.concatenate(parts)
    # metrics know float32 and float64
    return outputs.astype(np.float32) if outputs.dtype in _NARROW else outputs


def final_activation(model: ir.Model) -> str | None:
    """`Softmax`, `LogSoftmax` or `Sigmoid` where the model's first output is one."""
    node = model.graph.outputs[0].producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    known = node is not None and node.domain == "" and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid")
    return node.op_type if node is not None and known else None


def _confusion_table(confusion: Array, classes: Sequence[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("")
    for name in classes:
        table.add_column(name, justify="right")
    for i, name in enumerate(classes):
        cells = [
            Text(f"{count:,}", "bold") if i == j else f"{count:,}" if count else "·"
            for j, count in enumerate(confusion[i].tolist())
        ]
        table.add_row(name, *cells)
    return table
