"""Images that stand in a table's cells: Hugging Face data sets, and their Parquet and Arrow files."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onward.data._files import stem
from onward.data.dataset import Array, Dataset
from onward.data.frame import ARROW_SUFFIXES, read_arrow
from onward.data.hugging_face import (
    arrow_table,
    class_names,
    is_data_set,
    is_saved,
    names_of_classes,
    read_saved,
)
from onward.data.table import TARGETS, encode_labels
from onward.errors import DataError

__all__ = ["has_image_rows", "load_image_rows"]


def has_image_rows(source: Any) -> bool:
    """Whether `load_image_rows` reads it."""
    if is_data_set(source):
        return True
    return Path(source).suffix.lower() in ARROW_SUFFIXES or is_saved(source)


def load_image_rows(
    source: Any,
    decode: Callable[[Path | io.BytesIO, str], Array],
    empty: Array,
    *,
    target: str | None = None,
    skip_bad_files: bool = False,
    name: str | None = None,
) -> Dataset:
    """The images of a table with a column of them and one of labels.

    Args:
        source: a data set of `datasets`, a folder that its `save_to_disk` wrote, a Parquet or Arrow file.
        decode: makes [C, H, W] of an encoded image, which messages call as it is told.
        empty: an image, whose shape and type all have.
        target: the column of labels; None: one with names of classes or a usual name, or the only other one.
        skip_bad_files: leave out images that cannot be decoded, and count them.
        name: of the data.

    Raises:
        DataError: there is no such column, or an image or label is missing or cannot be read.
    """
    where = "the data set" if is_data_set(source) else str(source)
    if is_data_set(source):
        table = arrow_table(source)
    else:
        table = read_arrow(source) if Path(source).is_file() else read_saved(source)
    names = names_of_classes(source) if is_data_set(source) else class_names(table)
    column, label = _columns(where, table, target, names)
    labels, classes, kept = _labels(where, label, table.column(label), names.get(label))
    images = np.empty((len(kept), *empty.shape), empty.dtype)
    done: list[int] = []
    bad: list[DataError] = []
    for row, cell in enumerate(table.column(column)):
        try:
            if not kept[row]:
                raise DataError(f"{where}: row {row} has no label")
            images[len(done)] = decode(_encoded(cell.as_py(), where, row, column), f"{where}, row {row}")
        except DataError as error:
            if not skip_bad_files:
                raise DataError(f"{error}; repair it, or leave such rows out with --skip-bad-files") from None
            bad.append(error)
            continue
        done.append(row)
    if not done:
        raise DataError(f"{where}: no row has an image that can be read and a label")
    shown = "; ".join(str(error) for error in bad[:3]) + ("; ..." if len(bad) > 3 else "")
    return Dataset(
        inputs={"image": images[: len(done)]},
        targets=labels[done],
        classes=classes,
        name=name if name is not None else "images" if is_data_set(source) else stem(source),
        notes=(f"{where}: {len(bad):,} of {len(kept):,} rows left out: {shown}",) if bad else (),
    )


def _columns(where: str, table: Any, target: str | None, named: dict[str, list[str]]) -> tuple[str, str]:
    columns = list(table.column_names)
    images = [name for name in columns if _holds_images(table.schema.field(name).type)]
    if len(images) != 1:
        raise DataError(
            f"{where}: one column must hold encoded images, {', '.join(images) or 'none'} of "
            f"{', '.join(columns)} does; choose columns with select_columns"
        )
    others = [name for name in columns if name not in images]
    usual = [name for name in others if name in named or name.lower() in (*TARGETS, "labels", "fine_label")]
    if target is None:
        target = next(iter(usual), others[0] if len(others) == 1 else None)
    if target is None or target not in others:
        raise DataError(
            f"{where}: which column is the label must be said with --target; there are {', '.join(others)}"
        )
    return images[0], target


def _holds_images(kind: Any) -> bool:
    if str(kind) in ("binary", "large_binary", "binary_view"):
        return True
    return str(kind).startswith("struct<") and {"bytes", "path"} <= {
        kind.field(i).name for i in range(kind.num_fields)
    }


def _labels(
    where: str, label: str, column: Any, names: Sequence[str] | None
) -> tuple[Array, tuple[str, ...], Array]:
    """Labels [N], the names of classes, and whether a row has a label."""
    found = column.to_pylist()
    if names is not None:
        kept = np.array([value is not None and value >= 0 for value in found], np.bool_)
        numbers = np.array([value if good else 0 for value, good in zip(found, kept, strict=True)], np.int64)
        if (numbers >= len(names)).any():
            raise DataError(f"{where}: column {label!r} has a label above its {len(names)} classes")
        return numbers, tuple(names), kept
    kept = np.array([value is not None and str(value).strip() != "" for value in found], np.bool_)
    if not kept.any():
        raise DataError(f"{where}: column {label!r} is empty")
    encoded, classes = encode_labels([str(v) for v, good in zip(found, kept, strict=True) if good])
    numbers = np.zeros(len(found), np.int64)
    numbers[kept] = encoded
    return numbers, classes, kept


def _encoded(cell: Any, where: str, row: int, column: str) -> Path | io.BytesIO:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is not None:
        return io.BytesIO(content)
    if isinstance(cell, dict) and cell.get("path"):
        return Path(cell["path"])
    raise DataError(f"{where}: row {row}, column {column!r} is empty")
