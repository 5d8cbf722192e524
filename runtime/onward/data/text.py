"""Labelled texts from CSV files."""

from __future__ import annotations

import numpy as np

from onward.data._files import PathLike, read_rows, stem
from onward.data.dataset import Dataset
from onward.data.split import stratified_sample
from onward.data.table import encode_labels, find_columns
from onward.data.vocabulary import tokenize
from onward.errors import ConfigError, DataError

__all__ = ["load_text_csv"]


def load_text_csv(
    path: PathLike,
    *,
    text: str = "text",
    target: str = "label",
    tokens: int = 50,
    limit: int | None = None,
    seed: int = 0,
    drop_duplicates: bool = False,
    delimiter: str = ",",
    name: str | None = None,
) -> Dataset:
    """Texts and their classes from a UTF-8 CSV file (plain or gzip): input "text", str objects of shape [N].

    Texts whose first `tokens` words are equal, and which a model of that length cannot tell apart, form a
    group, so that `split` never puts them into different parts. limit: keep that many rows, drawn with
    `seed` in proportion of the classes. drop_duplicates: keep the first of the rows with the same text and
    label; how many there are is in `Dataset.notes` either way.

    Raises DataError for an unknown column (it lists those there are), an empty text or label (with its row,
    counted from 1 after the header), and an empty file.
    """
    if tokens < 1 or (limit is not None and limit < 1):
        raise ConfigError(f"tokens {tokens} and limit {limit} must be 1 or more")
    rows = read_rows(path, delimiter)
    header = next(rows)
    text_place, target_place = find_columns(path, header, [text, target])
    found: list[tuple[str, str]] = []
    for number, row in enumerate(rows, start=1):
        for place, column in ((text_place, text), (target_place, target)):
            if not row[place].strip():
                raise DataError(f"{path}: row {number}, column {column!r} is empty; repair or remove the row")
        found.append((row[text_place], row[target_place].strip()))
    if not found:
        raise DataError(f"{path}: the data set is empty; there is a header, but no rows")
    different = list(dict.fromkeys(found))
    notes = _notes(path, len(found), len(different), drop_duplicates)
    if drop_duplicates:
        found = different
    targets, classes = encode_labels([label for _, label in found])
    texts = np.empty(len(found), dtype=object)
    texts[:] = [body for body, _ in found]
    if limit is not None:
        kept = stratified_sample(targets, limit, seed)
        texts, targets = texts[kept], targets[kept]
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(" ".join(tokenize(body, tokens)), len(numbers)) for body in texts]
    return Dataset(
        inputs={"text": texts},
        targets=targets,
        classes=classes,
        name=name if name is not None else stem(path),
        groups=np.array(groups, dtype=np.int64),
        notes=notes,
    )


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
