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

__all__ = ["encode_labels", "extra_columns", "find_columns", "load_csv"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def load_csv(
    path: PathLike,
    target: str | Sequence[str],
    *,
    task: Task | None = None,
    features: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    group: str | None = None,
    delimiter: str = ",",
    name: str | None = None,
) -> Dataset:
    """A UTF-8 CSV file (plain or gzip) with a header row: input "features", float32 [N, F].

    target: the column to predict, or several. For classification any text or number, its distinct values
        being the classes (integers in numerical order, anything else in order of the text); for regression a
        number, targets float32 [N, 1]. Several columns are labels that hold or not where each value is 0 or
        1, int64 [N, L], else numbers, float32 [N, K].
    task: by default classification for one column, and what the values are for several.
    features: the columns to learn from, in this order and wherever they stand in the file; all but target,
        group and `exclude` unless given. Others are then left out, which `Dataset.notes` says.
    group: a column whose equal values must stay in one part of a split (a patient, a session).

    Raises DataError for unknown columns (it lists those there are), a missing or non-numeric value (row,
    counted from 1 after the header, and column), rows of another length, and an empty file.
    """
    rows = read_rows(path, delimiter)
    header = next(rows)
    if task not in ("classification", "regression", None):
        raise ConfigError(f"task must be classification or regression, not {task!r}")
    goals = [target] if isinstance(target, str) else list(target)
    if not goals or len(set(goals)) < len(goals):
        raise ConfigError(f"targets {goals} must be one column or several different ones")
    left_out = {*goals, *exclude, *([] if group is None else [group])}
    used = [c for c in header if c not in left_out] if features is None else list(features)
    find_columns(path, header, [*goals, *exclude, *used, *([] if group is None else [group])])
    if clash := next((column for column in goals if column in used), None):
        raise ConfigError(f"column {clash!r} cannot be a feature and the target at once")
    if not used:
        raise DataError(
            f"{path}: no feature columns are left beside the target {', '.join(map(repr, goals))}"
        )
    extra = [] if features is None else [c for c in header if c not in left_out and c not in used]
    places = [(header.index(column), column) for column in used]
    goal_places = [(header.index(column), column) for column in goals]
    group_place = None if group is None else header.index(group)
    values, groups = array("f"), []
    labels: list[list[str]] = [[] for _ in goals]
    for number, row in enumerate(rows, start=1):
        values.extend([_number(path, number, column, row[place]) for place, column in places])
        for kept, (place, column) in zip(labels, goal_places, strict=True):
            kept.append(_label(path, number, column, row[place]))
        if group_place is not None:
            groups.append(row[group_place])
    if not values:
        raise DataError(f"{path}: the data set is empty; there is a header, but no rows")
    targets, classes, task = _targets(path, goals, labels, task)
    return Dataset(
        inputs={"features": np.array(values, dtype=np.float32).reshape(-1, len(used))},
        targets=targets,
        classes=classes,
        name=name if name is not None else stem(path),
        task=task,
        groups=None if group is None else np.unique(np.array(groups, dtype=object), return_inverse=True)[1],
        columns=tuple(used),
        notes=(f"{path}: {extra_columns(extra)}",) if extra else (),
    )


def find_columns(path: PathLike, header: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The places of columns in a header. Raises DataError that names all that are missing."""
    missing = [column for column in wanted if column not in header]
    if missing:
        names = ", ".join(map(repr, dict.fromkeys(missing)))
        raise DataError(
            f"{path}: no column{'s' if len(missing) > 1 else ''} {names}; the columns are {', '.join(header)}"
        )
    return [header.index(column) for column in wanted]


def extra_columns(names: Sequence[str]) -> str:
    """What is said of columns that are not used."""
    shown = ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"column{'s' if len(names) > 1 else ''} {shown} {'are' if len(names) > 1 else 'is'} not used"


def _label(path: PathLike, row: int, column: str, text: str) -> str:
    label = text.strip()
    if not label:
        raise DataError(f"{path}: row {row}, column {column!r}: the target is missing")
    if label.lower().lstrip("+-") == "nan":
        raise DataError(
            f"{path}: row {row}, column {column!r}: {label!r} is no class; repair or remove the row"
        )
    return label


def _targets(
    path: PathLike, goals: Sequence[str], labels: Sequence[Sequence[str]], task: Task | None
) -> tuple[Array, tuple[str, ...] | None, Task]:
    """Targets, classes and task of one or several columns."""
    if len(goals) == 1 and task != "regression":
        targets, classes = encode_labels(labels[0])
        return targets, classes, "classification"
    if task != "regression" and all(set(column) <= {"0", "1"} for column in labels):
        return np.array(labels, dtype=np.int64).T.copy(), tuple(goals), "classification"
    if task == "classification":
        wrong = next(c for c, column in zip(goals, labels, strict=True) if not set(column) <= {"0", "1"})
        raise DataError(
            f"{path}: several targets are labels of 0 and 1, column {wrong!r} has other values; choose one "
            "target, or say task regression"
        )
    numbers = [
        [_number(path, number, name, label) for number, label in enumerate(column, start=1)]
        for name, column in zip(goals, labels, strict=True)
    ]
    return np.array(numbers, dtype=np.float32).T.copy(), None, "regression"


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
