"""Streaming metrics over NumPy arrays: fed batch by batch, their whole state a few plain arrays.

Classification outputs are scores (logits or probabilities) of shape [N, K, ...] for integer targets [N, ...].
Outputs with one score a sample ([N] or [N, 1]) mean two classes, 1 where the score is above `threshold`
(0 for logits, 0.5 for probabilities). Equal scores: the lower class wins, as in argmax. A sample whose scores
hold NaN has no prediction and counts as wrong. Targets equal to `ignore_index` are left out.

A quotient 0/0 is 0: precision of a class that was never predicted, recall of one that never occurred, F1 of
both, accuracy over no samples. Macro averages run over all K classes, those included.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Protocol, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onward.errors import ConfigError, DataError

__all__ = [
    "R2",
    "Accuracy",
    "Average",
    "ClassScore",
    "ConfusionMatrix",
    "FunctionMetric",
    "Metric",
    "RegressionError",
    "TopK",
    "available_metrics",
    "create_metric",
]

Array = NDArray[Any]
Average = Literal["macro", "micro", "weighted", "binary", "none"]
Measure = Literal["precision", "recall", "f1"]
Deviation = Literal["mae", "mse", "rmse"]


class Ranks(Protocol):
    """Processes among which batches are divided; each makes the same calls."""

    def sum(self, array: Array) -> Array:
        """The sum of an array of all ranks, float64 or int64."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks."""


class Metric(ABC):
    """A figure over all batches since the last `reset`."""

    name: str

    @abstractmethod
    def update(self, outputs: ArrayLike, targets: ArrayLike) -> None:
        """Add a batch. Raises DataError for shapes that do not fit and targets out of range."""

    @abstractmethod
    def result(self) -> float | Array:
        """The figure over everything added; a float, or an array for figures per class."""

    @abstractmethod
    def reset(self) -> None:
        """Forget every batch."""

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """A copy of everything accumulated, for a checkpoint; empty before the first batch."""

    @abstractmethod
    def load_state(self, state: dict[str, Array]) -> None:
        """Go on from what `state` gave."""

    def join(self, ranks: Ranks) -> None:
        """Add the batches of all other ranks.

        Raises:
            ConfigError: the metric does not know how.
        """
        raise ConfigError(
            f"metric {self.name}: {type(self).__name__} has no method `join`, which adds up what several "
            "ranks counted; write it, or leave the metric out of training on several ranks"
        )


class _Counted(Metric):
    """A figure from int64 [K, K + 1]: samples by class and prediction; the last column, those without one."""

    def __init__(
        self, name: str, ignore_index: int | None, threshold: float, only_classes: int | None = None
    ) -> None:
        self.name = name
        self._ignore_index = ignore_index
        self._threshold = threshold
        self._only_classes = only_classes
        self._matrix: NDArray[np.int64] = np.zeros((0, 0), dtype=np.int64)

    def update(self, outputs: ArrayLike, targets: ArrayLike) -> None:
        scores, labels = _scores(outputs, targets, self._ignore_index)
        classes = max(2, scores.shape[1])
        if self._only_classes is not None and classes != self._only_classes:
            raise DataError(f"{self.name}: outputs have {classes} classes, it is for {self._only_classes}")
        if self._matrix.size and len(self._matrix) != classes:
            raise DataError(
                f"{self.name}: outputs have {classes} classes after batches of {len(self._matrix)}"
            )
        if scores.shape[1] == 1:
            predicted = (scores[:, 0] > self._threshold).astype(np.int64)
        else:
            predicted = scores.argmax(axis=1)
        predicted = np.where(np.isnan(scores).any(axis=1), classes, predicted)
        cells = np.bincount(labels * (classes + 1) + predicted, minlength=classes * (classes + 1))
        matrix = cells.reshape(classes, classes + 1).astype(np.int64)
        self._matrix = self._matrix + matrix if self._matrix.size else matrix

    def reset(self) -> None:
        self._matrix = np.zeros((0, 0), dtype=np.int64)

    def state(self) -> dict[str, Array]:
        return {"counts": self._matrix.copy()}

    def load_state(self, state: dict[str, Array]) -> None:
        self._matrix = state["counts"].copy()

    def join(self, ranks: Ranks) -> None:
        classes = max(ranks.gather(len(self._matrix)))
        own = self._matrix if self._matrix.size else np.zeros((classes, classes + 1), np.int64)
        self._matrix = ranks.sum(own) if classes else self._matrix


@final
class Accuracy(_Counted):
    """The share of samples whose highest score is their target's."""

    def __init__(self, *, ignore_index: int | None = None, threshold: float = 0.0) -> None:
        super().__init__("accuracy", ignore_index, threshold)

    def result(self) -> float:
        counts = self._matrix
        return _ratio(np.trace(counts), counts.sum())


@final
class TopK(Metric):
    """The share of samples whose target is among the `k` highest scores."""

    def __init__(self, k: int, *, ignore_index: int | None = None) -> None:
        if k < 1:
            raise ConfigError(f"top-k: k must be 1 or more, not {k}")
        self.name = f"top{k}"
        self._k = k
        self._ignore_index = ignore_index
        self.reset()

    def update(self, outputs: ArrayLike, targets: ArrayLike) -> None:
        scores, labels = _scores(outputs, targets, self._ignore_index)
        if scores.shape[1] == 1:
            raise DataError(f"{self.name}: one score a sample has no ranking; use accuracy")
        of_target = np.take_along_axis(scores, labels[:, None], axis=1)
        classes = np.arange(scores.shape[1])
        ahead = (scores > of_target) | ((scores == of_target) & (classes < labels[:, None]))
        hits = (ahead.sum(axis=1) < self._k) & ~np.isnan(scores).any(axis=1)
        self._hits += int(hits.sum())
        self._total += len(labels)

    def result(self) -> float:
        return _ratio(self._hits, self._total)

    def reset(self) -> None:
        self._hits = self._total = 0

    def state(self) -> dict[str, Array]:
        return {"hits": np.array(self._hits), "total": np.array(self._total)}

    def load_state(self, state: dict[str, Array]) -> None:
        self._hits, self._total = int(state["hits"]), int(state["total"])

    def join(self, ranks: Ranks) -> None:
        self._hits, self._total = map(int, ranks.sum(np.array([self._hits, self._total])))


@final
class FunctionMetric(Metric):
    """A function of one's own as a metric; `Trainer(..., metrics=[function])` makes one.

    Args:
        function: of (outputs, targets), NumPy arrays [B, ...]. What gives a figure for each sample, [B], is
            averaged over all of them. What gives one figure is asked once more over all samples, which are
            kept for that, since a mean of batches' figures is not the figure.
        name: by default the function's.
    """

    def __init__(self, function: Callable[[Array, Array], Any], name: str | None = None) -> None:
        self._function = function
        self.name = name if name is not None else getattr(function, "__name__", type(function).__name__)
        self._kept: list[tuple[Array, Array]] | None = None
        self.reset()

    def update(self, outputs: ArrayLike, targets: ArrayLike) -> None:
        scores, answers = np.asarray(outputs), np.asarray(targets)
        if self._kept is None:
            figure = np.asarray(self._function(scores, answers))
            if figure.shape not in ((), (len(scores),)) or figure.dtype.kind not in "biuf":
                raise DataError(
                    f"metric {self.name}: the function must give a number, or one for each of {len(scores)} "
                    f"samples; it gave {figure.dtype} {list(figure.shape)}"
                )
            if figure.shape:
                self._sum += float(figure.sum(dtype=np.float64))
                self._count += len(figure)
                return
            self._kept = []
        self._kept.append((scores.copy(), answers.copy()))

    def result(self) -> float:
        if self._kept is None:
            return self._sum / self._count if self._count else float("nan")
        return float(self._function(*(np.concatenate(parts) for parts in zip(*self._kept, strict=True))))

    def reset(self) -> None:
        self._sum, self._count = 0.0, 0
        self._kept = None

    def state(self) -> dict[str, Array]:
        if self._kept is None:
            return {"sum": np.array(self._sum), "count": np.array(self._count)}
        scores, answers = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        return {"outputs": scores, "targets": answers}

    def load_state(self, state: dict[str, Array]) -> None:
        self.reset()
        if "outputs" in state:
            self._kept = [(state["outputs"], state["targets"])]
        else:
            self._sum, self._count = float(state["sum"]), int(state["count"])

    def join(self, ranks: Ranks) -> None:
        parts = ranks.gather(self._kept)
        if any(part is not None for part in parts):
            self._kept = [pair for part in parts if part is not None for pair in part]
        else:
            self._sum, count = map(float, ranks.sum(np.array([self._sum, float(self._count)])))
            self._count = int(count)


@final
class ClassScore(_Counted):
    """Precision TP/(TP+FP), recall TP/(TP+FN) or F1 2TP/(2TP+FP+FN), by class or averaged.

    average: "none" gives float64 [K]; "macro" the mean over classes; "weighted" the mean weighted by how
    often each class occurs; "micro" sums TP, FP and FN over the classes first; "binary" is class 1 of two.
    """

    def __init__(
        self,
        measure: Measure,
        average: Average = "macro",
        *,
        ignore_index: int | None = None,
        threshold: float = 0.0,
    ) -> None:
        if measure not in ("precision", "recall", "f1"):
            raise ConfigError(f"measure {measure!r} must be precision, recall or f1")
        if average not in ("macro", "micro", "weighted", "binary", "none"):
            raise ConfigError(f"average {average!r} must be macro, micro, weighted, binary or none")
        name = measure if average == "macro" else f"{measure}_{_SUFFIXES[average]}"
        super().__init__(name, ignore_index, threshold, 2 if average == "binary" else None)
        self._measure = measure
        self._average = average

    def result(self) -> float | Array:
        counts = self._matrix
        classes = len(counts)
        true = np.diagonal(counts[:, :classes])
        predicted, actual = counts[:, :classes].sum(axis=0), counts.sum(axis=1)
        if self._average == "micro":
            true, predicted, actual = (a.sum(keepdims=True) for a in (true, predicted, actual))
        above, below = {
            "precision": (true, predicted),
            "recall": (true, actual),
            "f1": (2 * true, predicted + actual),
        }[self._measure]
        scores = above / np.maximum(below, 1)
        if self._average == "none":
            return scores
        if classes == 0:
            return 0.0
        if self._average == "binary":
            return float(scores[1])
        if self._average == "weighted":
            return _ratio(float((scores * actual).sum()), actual.sum())
        return float(scores.mean())


@final
class ConfusionMatrix(_Counted):
    """int64 [K, K]: how many samples of class (row) were predicted as class (column)."""

    def __init__(self, *, ignore_index: int | None = None, threshold: float = 0.0) -> None:
        super().__init__("confusion_matrix", ignore_index, threshold)

    def result(self) -> NDArray[np.int64]:
        counts = self._matrix
        return counts[:, : len(counts)].copy()


@final
class RegressionError(Metric):
    """The mean over all elements of |output - target| (mae) or its square (mse), or the root of that (rmse).

    Summed in float64. Over no elements the result is NaN: there is no error to state.
    """

    def __init__(self, deviation: Deviation) -> None:
        if deviation not in ("mae", "mse", "rmse"):
            raise ConfigError(f"deviation {deviation!r} must be mae, mse or rmse")
        self.name = deviation
        self.reset()

    def update(self, outputs: ArrayLike, targets: ArrayLike) -> None:
        predicted, actual = _regression(self.name, outputs, targets)
        difference = predicted - actual
        self._sum += float(np.abs(difference).sum() if self.name == "mae" else np.square(difference).sum())
        self._count += difference.size

    def result(self) -> float:
        mean = self._sum / self._count if self._count else np.nan
        return float(np.sqrt(mean)) if self.name == "rmse" else mean

    def reset(self) -> None:
        self._sum, self._count = 0.0, 0

    def state(self) -> dict[str, Array]:
        return {"sum": np.array(self._sum), "count": np.array(self._count)}

    def load_state(self, state: dict[str, Array]) -> None:
        self._sum, self._count = float(state["sum"]), int(state["count"])

    def join(self, ranks: Ranks) -> None:
        self._sum, count = map(float, ranks.sum(np.array([self._sum, float(self._count)])))
        self._count = int(count)


@final
class R2(Metric):
    """1 - sum (y - f)^2 / sum (y - mean y)^2 by target column, averaged over the columns.

    Streams by the pairwise update of Chan, Golub and LeVeque (1979), in float64. Where a column's targets are
    all equal the quotient has no meaning, and the column counts 1 if predicted exactly, else 0. Over no
    samples the result is NaN.
    """

    def __init__(self) -> None:
        self.name = "r2"
        self.reset()

    def update(self, outputs: ArrayLike, targets: ArrayLike) -> None:
        predicted, actual = _regression(self.name, outputs, targets)
        count = len(actual)
        if count == 0:
            return
        predicted, actual = predicted.reshape(count, -1), actual.reshape(count, -1)
        residual = np.square(predicted - actual).sum(axis=0)
        mean = actual.mean(axis=0)
        total = np.square(actual - mean).sum(axis=0)
        lowest, highest = actual.min(axis=0), actual.max(axis=0)
        self._add(count, mean, total, residual, lowest, highest)

    def _add(
        self, count: int, mean: Array, total: Array, residual: Array, lowest: Array, highest: Array
    ) -> None:
        if self._count == 0:
            self._mean, self._total, self._residual = mean, total, residual
            self._lowest, self._highest = lowest, highest
        else:
            if mean.shape != self._mean.shape:
                raise DataError(f"r2: {len(mean)} target columns after batches of {len(self._mean)}")
            delta = mean - self._mean
            both = self._count + count
            self._mean = self._mean + delta * (count / both)
            self._total = self._total + total + np.square(delta) * (self._count * count / both)
            self._residual = self._residual + residual
            self._lowest = np.minimum(self._lowest, lowest)
            self._highest = np.maximum(self._highest, highest)
        self._count += count

    def result(self) -> float:
        if self._count == 0:
            return float("nan")
        constant = self._lowest == self._highest
        quotient = self._residual / np.where(constant, 1.0, self._total)
        scores = np.where(constant, np.where(self._residual == 0, 1.0, 0.0), 1.0 - quotient)
        return float(scores.mean())

    def reset(self) -> None:
        self._count = 0
        self._mean = self._total = self._residual = self._lowest = self._highest = np.zeros(0)

    def state(self) -> dict[str, Array]:
        return {"count": np.array(self._count)} | {
            name: getattr(self, f"_{name}").copy() for name in _R2_ARRAYS
        }

    def load_state(self, state: dict[str, Array]) -> None:
        self._count = int(state["count"])
        for name in _R2_ARRAYS:
            setattr(self, f"_{name}", state[name].copy())

    def join(self, ranks: Ranks) -> None:
        states = ranks.gather(self.state())
        self.reset()
        for state in states:
            if count := int(state["count"]):
                self._add(count, *(state[name] for name in _R2_ARRAYS))


_R2_ARRAYS = ("mean", "total", "residual", "lowest", "highest")
_SUFFIXES = {"micro": "micro", "weighted": "weighted", "binary": "binary", "none": "per_class"}


def available_metrics() -> tuple[str, ...]:
    """Every name `create_metric` takes; "top5" stands for top with any number."""
    scores = [
        measure + suffix
        for measure in ("precision", "recall", "f1")
        for suffix in ("", *(f"_{s}" for s in _SUFFIXES.values()))
    ]
    return ("accuracy", "top5", *scores, "confusion_matrix", "mae", "mse", "rmse", "r2")


def create_metric(name: str, **options: Any) -> Metric:
    """The metric called `name`, such as "accuracy", "top5", "f1" (macro), "recall_per_class" or "r2".

    options: `ignore_index` and `threshold`, for classification. Raises ConfigError for an unknown name or
    option.
    """
    makers: dict[str, Any] = {"accuracy": Accuracy, "confusion_matrix": ConfusionMatrix, "r2": R2}
    try:
        if name in makers:
            metric: Metric = makers[name](**options)
            return metric
        if name in ("mae", "mse", "rmse"):
            return RegressionError(name, **options)  # type: ignore[arg-type]
        if match := re.fullmatch(r"top([1-9][0-9]*)", name):
            return TopK(int(match[1]), **options)
        measure, _, suffix = name.partition("_")
        averages = {"": "macro"} | {value: key for key, value in _SUFFIXES.items()}
        if measure in ("precision", "recall", "f1") and suffix in averages and not name.endswith("_"):
            return ClassScore(measure, averages[suffix], **options)  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigError(f"metric {name!r} does not take the options {sorted(options)} ({error})") from error
    raise ConfigError(f"metric {name!r} is unknown; there are {', '.join(available_metrics())}")


def _ratio(above: Any, below: Any) -> float:
    return float(above) / float(below) if below else 0.0


def _scores(outputs: ArrayLike, targets: ArrayLike, ignore_index: int | None) -> tuple[Array, Array]:
    """Scores [M, K] and labels int64 [M], one row for each target that is not ignored."""
    scores, labels = np.asarray(outputs), np.asarray(targets)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim < 2 or scores.dtype.kind not in "biuf" or scores.shape[1] == 0:
        raise DataError(
            f"outputs must be scores of shape [N, K, ...], not {scores.dtype} {list(scores.shape)}"
        )
    spatial = (len(scores), *scores.shape[2:])
    if labels.shape not in (spatial, (len(scores), 1, *scores.shape[2:])):
        raise DataError(
            f"targets have shape {list(labels.shape)}, outputs {list(scores.shape)} need {list(spatial)}"
        )
    labels = labels.reshape(-1)
    if labels.dtype.kind == "f":
        if not (np.isfinite(labels).all() and (labels == np.floor(labels)).all()):
            raise DataError(
                "targets must be class numbers for metrics of classes; they hold fractions, NaN or Inf: for "
                "numbers choose mae, rmse or r2"
            )
    elif labels.dtype.kind not in "biu":
        raise DataError(f"targets must be class numbers, not {labels.dtype}")
    scores = np.moveaxis(scores, 1, -1).reshape(-1, scores.shape[1])
    kept = np.ones(len(labels), dtype=bool) if ignore_index is None else labels != ignore_index
    classes = max(2, scores.shape[1])
    bad = kept & ((labels < 0) | (labels >= classes)) if labels.dtype.kind != "b" else np.zeros_like(kept)
    if bad.any():
        place = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"target {labels[place]} at position {place} is out of range; there are {classes} classes"
        )
    return scores[kept], labels[kept].astype(np.int64)


def _regression(name: str, outputs: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    """Both as float64 of the targets' shape; [N] and [N, 1] are taken for one another."""
    predicted, actual = np.asarray(outputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    column = {(len(actual),), (len(actual), 1)} if actual.ndim else set()
    if predicted.shape != actual.shape and not {predicted.shape, actual.shape} <= column:
        raise DataError(f"{name}: outputs have shape {list(predicted.shape)}, targets {list(actual.shape)}")
    if actual.ndim == 0:
        raise DataError(f"{name}: outputs and targets must have shape [N, ...], not be scalars")
    return predicted.reshape(actual.shape), actual
