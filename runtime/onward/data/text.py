"""Labelled texts from CSV files."""

from __future__ import annotations

import numpy as np

from onward.data._files import PathLike, read_rows, stem
from onward.data.dataset import Dataset
from onward.data.split import stratified_sample
from onward.data.table import encode_labels
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
    delimiter: str = ",",
    name: str | None = None,
) -> Dataset:
    """Texts and their classes from a UTF-8 CSV file (plain or gzip): input "text", str objects of shape [N].

    A row that repeats an earlier row's text and label is dropped. Texts whose first `tokens` tokens are
    equal, and which a model of that length cannot tell apart, form a group, so that `split` never puts
    them into different parts. limit: keep that many rows, drawn with `seed` in proportion of the classes.

    Raises DataError for an unknown column (it lists those there are), an empty text or label (with its row,
    counted from 1 after the header), and an empty file.
    """
    if tokens < 1 or (limit is not None and limit < 1):
        raise ConfigError(f"tokens {tokens} and limit {limit} must be 1 or more")
    rows = read_rows(path, delimiter)
    header = next(rows)
    for column in (text, target):
        if column not in header:
            raise DataError(f"{path}: no column {column!r}; the columns are {', '.join(header)}")
    text_place, target_place = header.index(text), header.index(target)
    seen: dict[tuple[str, str], None] = {}
    for number, row in enumerate(rows, start=1):
        for place, column in ((text_place, text), (target_place, target)):
            if not row[place].strip():
                raise DataError(f"{path}: row {number}, column {column!r} is empty; repair or remove the row")
        seen.setdefault((row[text_place], row[target_place].strip()))
    if not seen:
        raise DataError(f"{path}: the data set is empty; there is a header, but no rows")
    targets, classes = encode_labels([label for _, label in seen])
    texts = np.empty(len(seen), dtype=object)
    texts[:] = [body for body, _ in seen]
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
    )
