"""Tables of numbers from CSV files."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onward.data._files import PathLike, read_rows, stem
from onward.data.dataset import Array, Dataset, Task
from onward.errors import ConfigError, DataError

__all__ = ["encode_labels", "load_csv"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def load_csv(
    path: PathLike,
    target: str,
    *,
    task: Task = "classification",
    features: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    group: str | None = None,
    delimiter: str = ",",
    name: str | None = None,
) -> Dataset:
    """A UTF-8 CSV file (plain or gzip) with a header row: input "features", float32 [N, F].

    target: the column to predict. For classification any text or number, its distinct values being the
        classes (integers in numerical order, anything else in order of the text); for regression a number,
        targets float32 [N, 1].
    features: the columns to learn from, in this order; all but target, group and `exclude` unless given.
    group: a column whose equal values must stay in one part of a split (a patient, a session).

    Raises DataError for an unknown column (it lists those there are), a missing or non-numeric value (row,
    counted from 1 after the header, and column), rows of another length, and an empty file.
    """
    rows = read_rows(path, delimiter)
    header = next(rows)
    if task not in ("classification", "regression"):
        raise ConfigError(f"task must be classification or regression, not {task!r}")
    left_out = {target, *exclude, *([] if group is None else [group])}
    used = [c for c in header if c not in left_out] if features is None else list(features)
    for column in (target, *exclude, *used, *([] if group is None else [group])):
        if column not in header:
            raise DataError(f"{path}: no column {column!r}; the columns are {', '.join(header)}")
    if target in used:
        raise ConfigError(f"column {target!r} cannot be a feature and the target at once")
    if not used:
        raise DataError(f"{path}: no feature columns are left beside the target {target!r}")
    places = [(header.index(column), column) for column in used]
    target_place = header.index(target)
    group_place = None if group is None else header.index(group)
    values, labels, groups = array("f"), [], []
    for number, row in enumerate(rows, start=1):
        values.extend([_number(path, number, column, row[place]) for place, column in places])
        label = row[target_place].strip()
        if not label:
            raise DataError(f"{path}: row {number}, column {target!r}: the target is missing")
        if label.lower().lstrip("+-") == "nan":
            raise DataError(
                f"{path}: row {number}, column {target!r}: {label!r} is no class; repair or remove the row"
            )
        labels.append(label)
        if group_place is not None:
            groups.append(row[group_place])
    if not labels:
        raise DataError(f"{path}: the data set is empty; there is a header, but no rows")
    if task == "classification":
        targets, classes = encode_labels(labels)
    else:
        numbers = [_number(path, number, target, label) for number, label in enumerate(labels, start=1)]
        targets, classes = np.array(numbers, dtype=np.float32)[:, None], None
    return Dataset(
        inputs={"features": np.array(values, dtype=np.float32).reshape(len(labels), len(used))},
        targets=targets,
        classes=classes,
        name=name if name is not None else stem(path),
        task=task,
        groups=None if group is None else np.unique(np.array(groups, dtype=object), return_inverse=True)[1],
    )


def encode_labels(labels: Sequence[str]) -> tuple[Array, tuple[str, ...]]:
    """Class numbers (int64 [N]) and class names for labels given as text."""
    names = sorted(set(labels), key=_label_order(labels))
    number = {label: index for index, label in enumerate(names)}
    return np.array([number[label] for label in labels], dtype=np.int64), tuple(names)


def _label_order(labels: Sequence[str]) -> Callable[[str], Any]:
    try:
        for label in set(labels):
            int(label)
    except ValueError:
        return lambda label: label
    return lambda label: (int(label), label)


def _number(path: PathLike, row: int, column: str, text: str) -> float:
    text = text.strip()
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not abs(value) <= _FLOAT32_MAX:
        problem = (
            f"{text!r} is not a finite number in the range of float32" if text else "the value is missing"
        )
        raise DataError(
            f"{path}: row {row}, column {column!r}: {problem}; repair the row or exclude the column"
        )
    return value
