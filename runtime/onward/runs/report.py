"""One self-contained page about a trained model: figures, curves, and the samples that it gets wrong.

Curves are drawn as SVG, pictures are inside the page, and nothing is fetched from anywhere.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onward.charts import Chart, Curve, confusion_table, history_charts, line_chart, page, scatter_chart
from onward.errors import DataError
from onward.graph import Array
from onward.runs.evaluation import Evaluation
from onward.train import infer_task

__all__ = [
    "calibration_curve",
    "evaluation_chart",
    "precision_recall_curve",
    "read_history",
    "report_page",
    "roc_curve",
]

_SHOWN_WRONG = 24
_SHOWN_CLASSES = 30
_CURVES = 6
_BINS = 10


def roc_curve(scores: Array, truth: Array) -> tuple[Array, Array, float]:
    """False and true positive rates at every threshold, and the area under the curve.

    Args:
        scores: [N], higher for what is thought positive.
        truth: bool [N].

    Returns:
        Rates from (0, 0) to (1, 1), and their area by the trapezoidal rule; ties are one point. NaN where
        one of the two kinds does not occur.
    """
    hits, misses = _counted(scores, truth)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return np.array([0.0, 1.0]), np.array([0.0, 1.0]), math.nan
    x, y = np.append(0, misses) / negatives, np.append(0, hits) / positives
    return x, y, float(np.trapezoid(y, x))


def precision_recall_curve(scores: Array, truth: Array) -> tuple[Array, Array, float]:
    """Recall and precision at every threshold, and the average precision Σ (R_n − R_n−1) P_n."""
    hits, misses = _counted(scores, truth)
    if not truth.any():
        return np.array([0.0, 1.0]), np.array([0.0, 0.0]), math.nan
    recall, precision = hits / truth.sum(), hits / (hits + misses)
    average = float((np.diff(recall, prepend=0) * precision).sum())
    return np.append(0, recall), np.append(precision[:1], precision), average


def calibration_curve(probabilities: Array, right: Array, bins: int = _BINS) -> tuple[Array, Array, float]:
    """Mean probability and share of answers that are right in bins of equal width, and the expected error.

    Args:
        probabilities: of the answers given, [N].
        right: bool [N].
        bins: how many.

    Returns:
        The two means over the bins that hold samples, and Σ n_b / N |mean − share| over them (the expected
        calibration error of Naeini et al. 2015).
    """
    number = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    counts = np.bincount(number, minlength=bins)
    used = counts > 0
    mean = np.bincount(number, probabilities, bins)[used] / counts[used]
    share = np.bincount(number, right.astype(np.float64), bins)[used] / counts[used]
    error = float((counts[used] / counts.sum() * np.abs(mean - share)).sum())
    return mean, share, error


def _counted(scores: Array, truth: Array) -> tuple[Array, Array]:
    """How many positives and negatives lie at or above each different score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(scores) - 1)
    hits = np.cumsum(truth[order])[last]
    return hits, last + 1 - hits


def report_page(evaluation: Evaluation, history: Sequence[Mapping[str, float]] = ()) -> str:
    """The page as HTML text.

    Args:
        evaluation: of the model on data that it was not trained on.
        history: a row an epoch; none: there is no drawing of them.
    """
    title = f"{evaluation.path.name}: {evaluation.spec}"
    parts = [
        f"<h1>{escape(str(evaluation.path))}</h1>",
        f"<p>{evaluation.measures.samples:,} samples of {escape(evaluation.spec)}, "
        f"{evaluation.part} part</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in evaluation.notes),
        *_figures(evaluation),
        *(("<h2>Epoch by epoch</h2>", *history_charts(history)) if history else ()),
        *_answers(evaluation),
        *_origin(evaluation),
    ]
    return page(title, "\n".join(parts))


def evaluation_chart(evaluation: Evaluation, history: Sequence[Mapping[str, float]] = ()) -> Chart:
    """What a notebook shows of a model: the curves of its run, and its answers beside the targets."""
    charts = [*(history_charts(history) if history else ()), *_answers(evaluation)]
    return Chart(f"{evaluation.path.name}: {evaluation.spec}", "\n".join(charts))


def _answers(evaluation: Evaluation) -> Iterator[str]:
    """Confusion, thresholds and wrong samples of classes; answers against targets of numbers; or nothing."""
    if evaluation.measures.confusion is not None:
        yield from _classification(evaluation)
    if _is_regression(evaluation):
        yield from _regression(evaluation)


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a history that a run left as CSV.

    Raises:
        DataError: it is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    except (ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: not the history of a run: {error}") from None
    if any("epoch" not in row for row in rows):
        raise DataError(f"{path}: not the history of a run: it has no column 'epoch'")
    return rows


def _is_regression(evaluation: Evaluation) -> bool:
    targets = evaluation.read.targets
    return evaluation.read.task == "regression" and targets is not None and not evaluation.measures.classes


def _figures(evaluation: Evaluation) -> Iterator[str]:
    yield "<h2>Figures</h2><table>"
    for name, value in evaluation.measures.figures.items():
        yield f"<tr><td>{escape(name)}</td><td>{value:.4g}</td></tr>"
    yield "</table>"
    measures = evaluation.measures
    if measures.support is None:
        return
    names = list(measures.per_class)
    heads = "".join(f"<th>{escape(name.removesuffix('_per_class'))}</th>" for name in names)
    yield f"<table><tr><th>class</th>{heads}<th>samples</th></tr>"
    for i, label in enumerate(measures.classes[:_SHOWN_CLASSES]):
        cells = "".join(f"<td>{measures.per_class[name][i]:.3f}</td>" for name in names)
        yield f"<tr><td>{escape(label)}</td>{cells}<td>{measures.support[i]:,}</td></tr>"
    yield "</table>"
    if len(measures.classes) > _SHOWN_CLASSES:
        yield f'<p class="note">and {len(measures.classes) - _SHOWN_CLASSES} more classes</p>'


def _probabilities(evaluation: Evaluation) -> tuple[Array, NDArray[np.int64]] | None:
    """Probabilities [N, C] and labels [N] of one class a sample; None for anything else."""
    outputs, targets = np.asarray(evaluation.outputs, np.float64), evaluation.read.targets
    if targets is None or outputs.ndim != 2:
        return None
    kind = infer_task(evaluation.read, ("N", *outputs.shape[1:])).kind
    if kind == "one-hot":
        targets = targets.argmax(axis=1)
    elif kind not in ("binary", "multi-class"):
        return None
    labels = targets.reshape(-1)
    if outputs.shape[1] == 1:
        one = outputs if evaluation.activation == "Sigmoid" else 1 / (1 + np.exp(-outputs))
        outputs = np.concatenate([1 - one, one], axis=1)
    elif evaluation.activation == "LogSoftmax":
        outputs = np.exp(outputs)
    elif evaluation.activation is None:
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        outputs = shifted / shifted.sum(axis=1, keepdims=True)
    counted = np.ones(len(labels), bool)
    if evaluation.read.ignore_index is not None:
        counted = labels != evaluation.read.ignore_index
    return outputs[counted], labels[counted].astype(np.int64)


def _classification(evaluation: Evaluation) -> Iterator[str]:
    confusion, classes = evaluation.measures.confusion, evaluation.measures.classes
    assert confusion is not None
    if len(classes) <= _SHOWN_CLASSES:
        yield "<h2>Confusion matrix</h2>"
        yield confusion_table(confusion, classes)
    found = _probabilities(evaluation)
    if found is None:
        return
    probabilities, labels = found
    yield "<h2>Thresholds and confidence</h2>"
    shown = [1] if len(classes) == 2 else list(range(min(len(classes), _CURVES)))
    roc, recall = [], []
    for label in shown:
        x, y, area = roc_curve(probabilities[:, label], labels == label)
        roc.append(Curve(f"{classes[label]}, area {area:.3f}", x, y))
        x, y, average = precision_recall_curve(probabilities[:, label], labels == label)
        recall.append(Curve(f"{classes[label]}, average {average:.3f}", x, y))
    if len(shown) < len(classes) and len(classes) > 2:
        yield f"<p>The first {len(shown)} of {len(classes)} classes.</p>"
    unit = (0.0, 1.0)
    yield line_chart("ROC: true against false positives", roc, "false positives", unit, unit)
    yield line_chart("precision against recall", recall, "recall", unit, unit)
    answers = probabilities.argmax(axis=1)
    mean, share, error = calibration_curve(probabilities.max(axis=1), answers == labels)
    diagonal = Curve("ideal", np.array(unit), np.array(unit))
    measured = Curve(f"measured, error {error:.3f}", mean, share)
    yield line_chart(
        "calibration: how often right, by confidence", [measured, diagonal], "confidence", unit, unit
    )
    yield from _wrong(evaluation, probabilities, labels)


def _wrong(evaluation: Evaluation, probabilities: Array, labels: Array) -> Iterator[str]:
    answers = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(answers != labels)
    if evaluation.read.ignore_index is not None and evaluation.read.targets is not None:
        rows = np.flatnonzero(evaluation.read.targets.reshape(-1) != evaluation.read.ignore_index)
    else:
        rows = np.arange(len(labels))
    wrong = wrong[np.argsort(-probabilities[wrong, answers[wrong]], kind="stable")]
    yield f"<h2>Wrong answers: {len(wrong):,} of {len(labels):,}</h2>"
    if not len(wrong):
        return
    yield '<p class="note">The most confident ones first.</p><div class="grid">'
    classes = evaluation.measures.classes
    for i in wrong[:_SHOWN_WRONG]:
        answer, label = int(answers[i]), int(labels[i])
        yield (
            f'<div class="sample">{_sample(evaluation, int(rows[i]))}'
            f"is <b>{escape(classes[label])}</b>, taken for <b>{escape(classes[answer])}</b> "
            f"({probabilities[i, answer]:.2f})</div>"
        )
    yield "</div>"


def _sample(evaluation: Evaluation, row: int) -> str:
    pieces = []
    for name, array in evaluation.read.inputs.items():
        value = array[row]
        if array.ndim == 4 and array.shape[1] in (1, 3):
            pieces.append(_picture(value))
        elif isinstance(value, str):
            pieces.append(f"<p>{escape(value[:300])}</p>")
        elif array.size // len(array) <= 16:
            columns = evaluation.read.columns or ()
            values = np.ravel(value)
            names = columns if len(columns) == len(values) else [name] * len(values)
            cells = "; ".join(f"{n} {_cell(v)}" for n, v in zip(names, values, strict=True))
            pieces.append(f"<p>{escape(cells)}</p>")
    return "".join(pieces)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _picture(pixels: Array) -> str:
    """An image [C, H, W], bytes or floats of 0 … 1, as a PNG inside the page; nothing without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        return ""
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.asarray(pixels, np.float64) * 255, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    file = io.BytesIO()
    image.save(file, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _regression(evaluation: Evaluation) -> Iterator[str]:
    assert evaluation.read.targets is not None
    outputs = np.asarray(evaluation.outputs, np.float64).reshape(len(evaluation.outputs), -1)
    targets = np.asarray(evaluation.read.targets, np.float64).reshape(len(outputs), -1)
    if outputs.shape != targets.shape:
        return
    yield "<h2>Answers against targets</h2>"
    for column in range(min(outputs.shape[1], _CURVES)):
        title = "answer against target" + (f", column {column + 1}" if outputs.shape[1] > 1 else "")
        yield scatter_chart(title, targets[:, column], outputs[:, column])


def _origin(evaluation: Evaluation) -> Iterator[str]:
    provenance = evaluation.provenance
    if provenance is None:
        return
    yield "<h2>Where it comes from</h2><table>"
    rows = {"made": provenance.created.isoformat(), "data": provenance.data_hash}
    rows |= {f"{name} version": version for name, version in provenance.versions.items()}
    for name, value in rows.items():
        yield f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>"
    yield "</table><table>"
    for name, setting in provenance.configuration.items():
        yield f"<tr><td>{escape(name)}</td><td>{escape(str(setting))}</td></tr>"
    yield "</table>"
