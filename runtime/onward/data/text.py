"""Labelled texts from tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.data._files import PathLike, stem
from onward.data.dataset import Array, Dataset
from onward.data.frame import Frame, read_frame, texts_of
from onward.data.split import stratified_sample
from onward.data.table import encode_labels, find_columns
from onward.data.vocabulary import tokenize
from onward.errors import ConfigError, DataError

__all__ = ["load_texts"]


def load_texts(
    source: Any,
    *,
    text: str | None = None,
    target: str | None = None,
    tokens: int = 50,
    limit: int | None = None,
    seed: int = 0,
    drop_duplicates: bool = False,
    skip_bad_rows: bool = False,
    delimiter: str | None = None,
    name: str | None = None,
) -> Dataset:
    """Texts and their classes from a table: input "text", str objects of shape [N].

    Texts whose first `tokens` words are equal, and which a model of that length cannot tell apart, form a
    group, so that `split` never puts them into different parts.

    Args:
        source: what `load_table` reads: CSV, JSON lines, Parquet, a data frame, a Hugging Face data set.
        text, target: the columns; None: "text" and "label", or, of a table with two columns, the one with the
            longer cells, and the other.
        tokens: see above.
        limit: keep that many rows, drawn with `seed` in proportion of the classes.
        drop_duplicates: keep the first of the rows with the same text and label; how many there are is in
            `Dataset.notes` either way.
        skip_bad_rows: leave out rows without a text or a label, and count them in `Dataset.notes`.
        delimiter: of a CSV file.

    Raises:
        DataError: an unknown column (it lists those there are), an empty text or label (with its row, counted
            from 1 after the header), an empty table.
    """
    if tokens < 1 or (limit is not None and limit < 1):
        raise ConfigError(f"tokens {tokens} and limit {limit} must be 1 or more")
    frame = read_frame(source, delimiter=delimiter, skip_bad_rows=skip_bad_rows)
    path = frame.name
    text, target = _columns(frame, text, target)
    find_columns(path, list(frame.columns), [text, target])
    bodies, labels = (texts_of(frame.columns[column]) for column in (text, target))
    empty = {"text": np.array([not body.strip() for body in bodies]), "label": _empty(labels)}
    skipped = dict(frame.skipped)
    kept = np.ones(len(frame), dtype=np.bool_)
    for what, column in (("text", text), ("label", target)):
        missing = empty[what] & kept
        if not missing.any():
            continue
        if not skip_bad_rows:
            row = int(np.argmax(missing)) + 1
            raise DataError(
                f"{path}: row {row}, column {column!r} is empty; repair or remove the row, or "
                "leave such rows out with --skip-bad-rows"
            )
        skipped[f"no {what}"] = int(missing.sum())
        kept &= ~missing
    found = [(bodies[i], labels[i].strip()) for i in np.flatnonzero(kept)]
    if not found:
        raise DataError(f"{path}: no row has a text and a label")
    different = list(dict.fromkeys(found))
    notes = _notes(path, len(found), len(different), drop_duplicates)
    if skipped:
        count = sum(skipped.values())
        reasons = "; ".join(f"{number:,} with {reason}" for reason, number in skipped.items())
        notes = (f"{path}: {count:,} row{'s' if count > 1 else ''} left out: {reasons}", *notes)
    if drop_duplicates:
        found = different
    targets, classes = encode_labels([label for _, label in found])
    texts = np.empty(len(found), dtype=object)
    texts[:] = [body for body, _ in found]
    if limit is not None:
        chosen = stratified_sample(targets, limit, seed)
        texts, targets = texts[chosen], targets[chosen]
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(" ".join(tokenize(body, tokens)), len(numbers)) for body in texts]
    return Dataset(
        inputs={"text": texts},
        targets=targets,
        classes=classes,
        name=name if name is not None else stem(path),
        groups=np.array(groups, dtype=np.int64),
        target_columns=(target,),
        text_column=text,
        notes=notes,
    )


def _columns(frame: Frame, text: str | None, target: str | None) -> tuple[str, str]:
    names = list(frame.columns)
    if len(names) == 2 and not {"text", "label"} <= set(names) and (text is None or target is None):
        lengths = {name: sum(map(len, texts_of(frame.columns[name]))) for name in names}
        longer = max(names, key=lambda name: lengths[name])
        if target is not None and target in names:
            longer = next(name for name in names if name != target)
        text = text or longer
        target = target or next(name for name in names if name != text)
    return text or "text", target or "label"


def _empty(labels: Array) -> NDArray[np.bool_]:
    return np.array([not label.strip() for label in labels], dtype=np.bool_)


def _notes(path: PathLike, rows: int, different: int, dropped: bool) -> tuple[str, ...]:
    if different == rows:
        return ()
    repeats = rows - different
    verb = "repeat" if repeats > 1 else "repeats"
    text = f"{path}: {repeats:,} of {rows:,} rows {verb} the text and label of an earlier row"
    return (
        f"{text} and {'were' if repeats > 1 else 'was'} left out"
        if dropped
        else f"{text}; all are kept, equal texts in one part of the data (--drop-duplicates leaves them out)",
    )
