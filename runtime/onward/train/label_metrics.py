"""Metrics by what targets are: several labels a sample, one-hot rows, classes on another axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onward.errors import ConfigError, DataError
from onward.train.metrics import Average, Metric, Ranks

__all__ = ["Adapted", "LabelScore"]

Array = NDArray[Any]
LabelMeasure = Literal["accuracy", "subset_accuracy", "precision", "recall", "f1"]
_AVERAGES = {"macro": "", "micro": "_micro", "weighted": "_weighted", "none": "_per_class"}


@final
class LabelScore(Metric):
    """A figure of L labels that hold or not: scores [N, L, ...], targets 0 or 1 of the same shape.

    A label is predicted where its score is above `threshold` (0 for logits, 0.5 for probabilities); a score
    NaN is wrong. "accuracy" is the share of labels that are right (Keras's binary accuracy),
    "subset_accuracy" the share of samples whose labels are all right (scikit-learn's). Precision, recall and
    F1 are by label (average "none": float64 [L]), their mean ("macro"), weighted by how often each label
    holds ("weighted"), or over all labels as one ("micro").
    """

    def __init__(self, measure: LabelMeasure, average: Average = "macro", *, threshold: float = 0.0) -> None:
        if measure not in ("accuracy", "subset_accuracy", "precision", "recall", "f1"):
            raise ConfigError(f"measure {measure!r} is none of a sample with several labels")
        if average not in _AVERAGES:
            raise ConfigError(f"average {average!r} must be one of {', '.join(_AVERAGES)}")
        self.name = measure if measure.endswith("accuracy") else measure + _AVERAGES[average]
        self._measure = measure
        self._average = average
        self._threshold = threshold
        self._counts: NDArray[np.int64] = np.zeros((3, 0), dtype=np.int64)
        self._exact = self._total = 0

    def update(self, outputs: ArrayLike, targets: ArrayLike) -> None:
        scores, labels = np.asarray(outputs), np.asarray(targets)
        if scores.ndim < 2 or scores.shape != labels.shape:
            raise DataError(
                f"{self.name}: outputs have shape {list(scores.shape)}, targets {list(labels.shape)}; "
                "several labels a sample need both as [N, L, ...]"
            )
        if not np.isin(labels, (0, 1)).all():
            raise DataError(f"{self.name}: the targets of several labels a sample are 0 or 1")
        count = scores.shape[1]
        if self._counts.shape[1] not in (0, count):
            raise DataError(f"{self.name}: {count} labels after batches of {self._counts.shape[1]}")
        scores, labels = (np.moveaxis(a, 1, -1).reshape(-1, count) for a in (scores, labels))
        true = labels.astype(bool)
        predicted = np.where(np.isnan(scores), ~true, scores > self._threshold)
        counts = np.stack(
            [(predicted & true).sum(0), (predicted & ~true).sum(0), (~predicted & true).sum(0)]
        ).astype(np.int64)
        self._counts = counts if not self._counts.size else self._counts + counts
        self._exact += int((predicted == true).all(axis=1).sum())
        self._total += len(true)

    def result(self) -> float | Array:
        hit, false, missed = self._counts.astype(np.float64)
        if self._measure == "subset_accuracy":
            return self._exact / self._total if self._total else 0.0
        if self._measure == "accuracy":
            cells = self._total * self._counts.shape[1]
            return float(1 - (false + missed).sum() / cells) if cells else 0.0
        actual = hit + missed
        if self._average == "micro":
            hit, false, missed = (a.sum(keepdims=True) for a in (hit, false, missed))
        above, below = {
            "precision": (hit, hit + false),
            "recall": (hit, hit + missed),
            "f1": (2 * hit, 2 * hit + false + missed),
        }[self._measure]
        scores = above / np.maximum(below, 1)
        if self._average == "none":
            return scores
        if not scores.size:
            return 0.0
        if self._average == "weighted":
            return float((scores * actual).sum() / actual.sum()) if actual.sum() else 0.0
        return float(scores.mean())

    def reset(self) -> None:
        self._counts = np.zeros((3, 0), dtype=np.int64)
        self._exact = self._total = 0

    def state(self) -> dict[str, Array]:
        return {
            "counts": self._counts.copy(),
            "exact": np.array(self._exact),
            "total": np.array(self._total),
        }

    def load_state(self, state: dict[str, Array]) -> None:
        self._counts = state["counts"].copy()
        self._exact, self._total = int(state["exact"]), int(state["total"])

    def join(self, ranks: Ranks) -> None:
        shapes = ranks.gather(self._counts.shape)
        shape = next((s for s in shapes if 0 not in s), shapes[0])
        own = self._counts if self._counts.shape == shape else np.zeros(shape, self._counts.dtype)
        self._counts = ranks.sum(own).astype(self._counts.dtype)
        self._exact, self._total = map(int, ranks.sum(np.array([self._exact, self._total])))


@final
class Adapted(Metric):
    """Another metric, of outputs and targets that are changed before it sees them."""

    def __init__(self, metric: Metric, change: Callable[[Array, Array], tuple[Array, Array]]) -> None:
        self.name = metric.name
        self._metric = metric
        self._change = change

    def update(self, outputs: ArrayLike, targets: ArrayLike) -> None:
        self._metric.update(*self._change(np.asarray(outputs), np.asarray(targets)))

    def result(self) -> float | Array:
        return self._metric.result()

    def reset(self) -> None:
        self._metric.reset()

    def state(self) -> dict[str, Array]:
        return self._metric.state()

    def load_state(self, state: dict[str, Array]) -> None:
        self._metric.load_state(state)

    def join(self, ranks: Ranks) -> None:
        self._metric.join(ranks)
