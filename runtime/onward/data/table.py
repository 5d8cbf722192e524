"""Labelled tables: which column is predicted, which are learned from, and which rows can be used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onward.data._files import PathLike, stem
from onward.data.column_fit import date_order
from onward.data.dataset import Array, Dataset, Task
from onward.data.frame import Frame, is_missing, read_frame, reads_numbers, texts_of
from onward.errors import ConfigError, DataError

__all__ = ["TARGETS", "encode_labels", "extra_columns", "find_columns", "load_table", "read_columns"]

TARGETS = ("target", "label", "class", "y", "outcome", "response")
"""Usual names of the column that is predicted, in small letters."""
_FEW_CLASSES = 20
_STAMP = re.compile(
    r"(?P<day>[0-9./-]+)([ T](?P<clock>[0-9:.]+)"
    r"( ?(Z|UTC|(?P<sign>[+-])(?P<hours>[0-9]{2}):?(?P<minutes>[0-9]{2})?))?)?"
)
_NEARLY = 10
"""A column with so many numbers to each other text is one of numbers with faults."""


def load_table(
    source: Any,
    target: str | Sequence[str] | None = None,
    *,
    task: Task | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    group: str | None = None,
    time: str | None = None,
    weight: str | None = None,
    kinds: Mapping[str, str] | None = None,
    unsaid: Sequence[str] = (),
    query: str | None = None,
    delimiter: str | None = None,
    skip_bad_rows: bool = False,
    name: str | None = None,
) -> Dataset:
    """A table: CSV, TSV, JSON lines, Parquet, Arrow, SQLite, a data frame, or arrays by name.

    Columns of numbers alone are the input "features", float64 [N, F]; otherwise each column is an input of
    its name, [N, 1]: float64, or texts. What is missing is NaN or an empty text, which `Preparation.fit`
    measures and the exported graph fills. A column holds numbers if all its cells are; true and false are
    1 and 0 among them.

    Args:
        source: see `onward.data.frame.read_frame`.
        target: the column to predict, or several; None: one called target, label, class, y, outcome or
            response, else the last, which `Dataset.notes` says. Classes are its distinct values, integers in
            numerical order; numbers are float64 [N, 1]. Several columns are labels that hold or not where
            each value is 0 or 1, int64 [N, L], else numbers, float64 [N, K].
        task: by default regression for numbers with fractions or more than 20 different values.
        include: the columns to learn from, in this order; by default all.
        exclude: columns that are not learned from.
        group: a column whose equal values must stay in one part of a split (a patient, a session).
        time: a column by which a split is ordered, the latest rows in its last part.
        weight: a column that says how much each row counts in the loss; it is not learned from.
        kinds: what columns are, "number" or "text", where their cells are not to decide.
        unsaid: columns that may be there besides `include` without a note.
        query, delimiter: see `read_frame`.
        skip_bad_rows: leave out rows of another length, without a target, or with a text among a column's
            numbers, and count them in `Dataset.notes`; else they are refused.

    Raises:
        DataError: unknown columns (it lists those there are), rows that cannot be used (row, counted from 1
            after the header, and column), an empty table.
        ConfigError: options that contradict each other.
    """
    if task not in ("classification", "regression", None):
        raise ConfigError(f"task must be classification or regression, not {task!r}")
    if group is not None and time is not None:
        raise ConfigError(
            f"parts are divided by time ({time!r}) or by groups ({group!r}): an order of rows "
            "cannot also keep groups together; give one of them"
        )
    frame = read_frame(source, query=query, delimiter=delimiter, skip_bad_rows=skip_bad_rows)
    where, header = frame.name, list(frame.columns)
    notes: list[str] = []
    if target is None:
        target = next((n for wanted in TARGETS for n in header if n.lower() == wanted), header[-1])
        notes.append(f"{where}: column {target!r} is predicted; --target chooses another")
    goals = [target] if isinstance(target, str) else list(target)
    if not goals or len(set(goals)) < len(goals):
        raise ConfigError(f"targets {goals} must be one column or several different ones")
    special = [column for column in (group, time, weight) if column is not None]
    used = [c for c in header if c not in {*goals, *exclude, group, weight}]
    if include is not None:
        used = [c for c in include if c not in exclude]
    find_columns(where, header, [*goals, *exclude, *used, *special])
    if clash := next((column for column in goals if column in used), None):
        raise ConfigError(f"column {clash!r} cannot be a feature and the target at once")
    if not used:
        raise DataError(f"{where}: no feature columns are left beside {', '.join(map(repr, goals))}")
    mentioned = {*goals, *exclude, *special, *used, *unsaid}
    extra = [c for c in header if include is not None and c not in mentioned]
    if extra:
        notes.append(f"{where}: {extra_columns(extra)}")
    skipped = dict(frame.skipped)
    columns, bad = _typed(frame, used, kinds or {}, skip_bad_rows, skipped)
    labels = [_goal(frame, goal, skip_bad_rows, bad, skipped) for goal in goals]
    if bad.any():
        if bad.all():
            raise DataError(f"{where}: no row is left: {_counted(skipped)}")
        columns = {c: array[~bad] for c, array in columns.items()}
        labels = [array[~bad] for array in labels]
    if skipped:
        count = sum(skipped.values())
        notes.append(f"{where}: {count:,} row{'s' if count > 1 else ''} left out: {_counted(skipped)}")
    targets, classes, task = _targets(where, goals, labels, task)
    if classes is not None and targets.ndim == 1:
        notes += _many_classes(where, goals[0], len(classes), len(targets))
    numeric = all(array.dtype.kind == "f" for array in columns.values())
    return Dataset(
        inputs={"features": np.stack(list(columns.values()), axis=1)}
        if numeric
        else {c: array[:, None] for c, array in columns.items()},
        targets=targets,
        classes=classes,
        name=name if name is not None else stem(where),
        task=task,
        groups=None if group is None else _numbered(frame.columns[group][~bad]),
        columns=tuple(used),
        table=True,
        target_columns=tuple(goals),
        weights=None if weight is None else _weights(where, weight, frame.columns[weight][~bad]),
        times=None if time is None else _times(where, time, frame.columns[time][~bad]),
        notes=tuple(notes),
    )


def read_columns(frame: Frame, kinds: Mapping[str, str]) -> dict[str, Array]:
    """The columns of these names as a model takes them: float64 [N], or str objects [N].

    Raises:
        DataError: a column is missing, or a cell is no number (its row and column).
    """
    find_columns(frame.name, list(frame.columns), list(kinds))
    return _typed(frame, list(kinds), kinds, False, {})[0]


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


def _typed(
    frame: Frame, used: Sequence[str], kinds: Mapping[str, str], skip: bool, skipped: dict[str, int]
) -> tuple[dict[str, Array], Array]:
    """Columns as numbers or texts, and the rows that cannot be used."""
    bad = np.zeros(len(frame), dtype=np.bool_)
    columns: dict[str, Array] = {}
    for column in used:
        cells, kind = frame.columns[column], kinds.get(column)
        if cells.dtype.kind == "f":
            wrong = np.isinf(cells)
            shown = [str(cells[int(np.argmax(wrong))])]
            if kind == "text":
                columns[column] = texts_of(cells)
                continue
            columns[column] = np.where(wrong, np.nan, cells)
        else:
            if kind == "text":
                columns[column] = cells
                continue
            values, wrong = reads_numbers(cells)
            count = int(np.isfinite(values).sum())
            if kind is None and (
                count < _NEARLY * int(wrong.sum()) or (not count and not _all_missing(cells))
            ):
                columns[column] = cells
                continue
            if kind is None and wrong.any() and date_order(cells) is not None:
                columns[column] = cells
                continue
            columns[column], shown = values, [str(cells[int(np.argmax(wrong))])]
        if not wrong.any():
            continue
        row, others = int(np.argmax(wrong)), int((~wrong).sum())
        if not skip:
            raise DataError(
                f"{frame.name}: row {row + 1}, column {column!r}: {shown[0]!r} is not a finite number, as "
                f"{'the model takes' if kind else f'{others:,} others are'}; repair it"
                + (
                    ""
                    if kind
                    else f", leave such rows out (--skip-bad-rows) or say --column {column}:category"
                )
            )
        fresh = wrong & ~bad
        if fresh.any():
            skipped[f"no number in {column!r}"] = int(fresh.sum())
        bad |= wrong
    return columns, bad


def _all_missing(cells: Array) -> bool:
    return all(is_missing(text) for text in cells)


def _counted(skipped: Mapping[str, int]) -> str:
    return "; ".join(f"{count:,} with {reason}" for reason, count in skipped.items())


def _goal(frame: Frame, goal: str, skip: bool, bad: Array, skipped: dict[str, int]) -> Array:
    """A target column's cells as texts; rows without one become bad."""
    cells = frame.columns[goal]
    texts = texts_of(cells)
    texts = np.array([text.strip() for text in texts], dtype=object)
    if not goal.isdecimal() and goal in texts:
        raise DataError(
            f"{frame.name}: {goal!r} is the name of the target and one of its values: a header row with the "
            "columns' names is needed, write one; else give the column another name"
        )
    nothing = np.array([not text or is_missing(text.lstrip("+-")) for text in texts], dtype=np.bool_)
    if nothing.any():
        if not skip:
            row = int(np.argmax(nothing))
            why = f"{texts[row]!r} is no class" if texts[row] else "the target is missing"
            raise DataError(
                f"{frame.name}: row {row + 1}, column {goal!r}: {why}"
                f" ({int(nothing.sum()):,} such rows); leave them out with --skip-bad-rows"
            )
        fresh = nothing & ~bad
        if fresh.any():
            skipped[f"no {goal!r}"] = int(fresh.sum())
        bad |= nothing
    return texts


def _times(where: str, column: str, cells: Array) -> Array:
    """What orders rows: numbers, or dates as seconds."""
    if cells.dtype.kind == "f":
        times = cells
    else:
        times, wrong = reads_numbers(cells)
        if wrong.any():
            order = date_order(cells)
            if order is None:
                raise DataError(
                    f"{where}: column {column!r} holds neither numbers nor dates to order rows by"
                )
            times = np.array([_seconds(text, order) for text in cells])
    if not np.isfinite(times).all():
        row = int(np.argmax(~np.isfinite(times)))
        raise DataError(f"{where}: row {row + 1}, column {column!r}: the time is missing")
    return times.astype(np.float64)


def _weights(where: str, column: str, cells: Array) -> Array:
    values, _ = (cells, None) if cells.dtype.kind == "f" else reads_numbers(cells)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{where}: row {row + 1}, column {column!r}: {cells[row]!s} is no weight; 0 or more is needed"
        )
    return values


def _seconds(text: str, order: str) -> float:
    """Seconds since 1970 of a date that `date_pattern` matches, in UTC where it names a zone."""
    if is_missing(text):
        return float("nan")
    found = _STAMP.fullmatch(text)
    assert found is not None
    fields = dict(zip(order[::2], found["day"].split(order[1]), strict=True))
    stamp = np.datetime64(f"{fields['y']}-{int(fields['m']):02}-01", "D") + (int(fields["d"]) - 1)
    parts = [float(part) for part in (found["clock"] or "0").split(":")]
    within = sum(part * size for part, size in zip(parts, (3600, 60, 1), strict=False))
    ahead = 0.0
    if found["sign"]:
        ahead = float(f"{found['sign']}1") * (int(found["hours"]) * 3600 + int(found["minutes"] or 0) * 60)
    return float(stamp.astype(np.int64)) * 86400 + within - ahead


def _numbered(cells: Array) -> Array:
    return np.unique(cells.astype(str), return_inverse=True)[1]


def _targets(
    where: str, goals: Sequence[str], labels: Sequence[Array], task: Task | None
) -> tuple[Array, tuple[str, ...] | None, Task]:
    """Targets, classes and task of one or several columns."""
    if task is None and len(goals) == 1:
        task = _task_of(labels[0])
    if len(goals) == 1 and task != "regression":
        targets, classes = encode_labels(labels[0].tolist())
        return targets, classes, "classification"
    if task != "regression" and all(set(column) <= {"0", "1"} for column in labels):
        return (
            np.array([column.tolist() for column in labels]).astype(np.int64).T.copy(),
            tuple(goals),
            "classification",
        )
    if task == "classification":
        wrong = next(c for c, column in zip(goals, labels, strict=True) if not set(column) <= {"0", "1"})
        raise DataError(
            f"{where}: several targets are labels of 0 and 1, column {wrong!r} has other values; choose one "
            "target, or say task regression"
        )
    numbers = []
    for goal, column in zip(goals, labels, strict=True):
        values, bad = reads_numbers(column)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{where}: row {row + 1}, column {goal!r}: {column[row]!r} is not a finite number; repair "
                "the row, or say --task classification"
            )
        numbers.append(values)
    return np.stack(numbers, axis=1), None, "regression"


def _many_classes(where: str, goal: str, classes: int, rows: int) -> list[str]:
    """What is said where a target names rows rather than classes."""
    if classes <= _FEW_CLASSES or classes <= rows / 2:
        return []
    return [
        f"{where}: column {goal!r} has {classes:,} classes in {rows:,} rows, too few rows a class to "
        "learn from; --target chooses another column, --task regression predicts numbers"
    ]


def _task_of(labels: Array) -> Task:
    values, bad = reads_numbers(labels)
    if bad.any():
        return "classification"
    whole = bool((values == np.floor(values)).all())
    return "classification" if whole and len(np.unique(values)) <= _FEW_CLASSES else "regression"


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
