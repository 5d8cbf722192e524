"""Columns as people have them: CSV, Parquet, Arrow, SQLite, JSON lines, data frames, arrays by name."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from urllib.parse import unquote

import numpy as np

from onward.data._files import PathLike, open_binary, open_text, optional_module, read_table_rows, reading
from onward.data.dataset import Array
from onward.data.hugging_face import (
    arrow_table,
    class_names,
    is_data_set,
    is_saved,
    names_of_classes,
    read_saved,
    refuse_splits,
)
from onward.errors import ConfigError, DataError, StorageError

__all__ = [
    "ARROW_SUFFIXES",
    "MISSING",
    "TABLE_SUFFIXES",
    "Frame",
    "is_missing",
    "read_arrow",
    "read_frame",
    "reads_numbers",
    "texts_of",
]

MISSING = ("", "?", "na", "n/a", "#n/a", "nan", "null", "none")
"""Cells that hold nothing, in small letters."""

ARROW_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".feather": "feather",
    ".arrow": "feather",
    ".ipc": "feather",
}
"""Names of files that pyarrow reads, and by which of its modules."""
TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".jsonl", ".jsonl.gz", ".ndjson", *ARROW_SUFFIXES)
"""Names of files that are tables."""


@final
@dataclass(frozen=True, eq=False)
class Frame:
    """N rows by column.

    Attributes:
        name: what the source is called.
        columns: float64 [N], NaN where a number is missing; or str objects [N], where `MISSING` are none.
        skipped: why rows were left out, and how many for each reason.
        headless: whether the columns' names are not in the source.
    """

    name: str
    columns: dict[str, Array]
    skipped: Mapping[str, int]
    headless: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def is_missing(text: str) -> bool:
    """Whether a cell holds nothing."""
    return text.strip().lower() in MISSING


def read_frame(
    source: Any,
    *,
    query: str | None = None,
    delimiter: str | None = None,
    skip_bad_rows: bool = False,
    names: Sequence[str] | None = None,
) -> Frame:
    """Read a table.

    Args:
        source: a path (CSV or TSV, plain or gzip; JSON lines; Parquet, Feather or Arrow, through pyarrow; an
            SQLite file with `query`), arrays by name, a structured array, a sequence of rows by name, a
            pandas, polars or pyarrow table, or a Hugging Face data set or the folder that its `save_to_disk`
            wrote. Classes that these name (`ClassLabel`) are texts.
        query: the SELECT of an SQLite file.
        delimiter: of a CSV file; by default a tab for .tsv, else a comma, or where the header has none the
            semicolon, tab or bar that it has. Beside semicolons, columns whose numbers have decimal commas
            are numbers.
        skip_bad_rows: leave rows of another length out instead of refusing the file.
        names: the columns of a CSV file whose first row holds numbers alone, and none of these names.

    Raises:
        DataError: the content cannot be read, or a column holds neither numbers nor texts nor dates.
        StorageError: the file cannot be read.
        ConfigError: pyarrow is missing, or the source is of no kind that is known.
    """
    refuse_splits(source)
    if isinstance(source, (str, Path)):
        frame = _from_path(source, query, delimiter, skip_bad_rows, names)
    elif is_data_set(source):
        frame = Frame("table", _from_arrow(arrow_table(source), "table", names_of_classes(source)), {})
    elif hasattr(source, "__arrow_c_stream__"):
        frame = Frame("table", _from_arrow(_pyarrow().table(source), "table"), {})
    elif isinstance(source, np.ndarray) and source.dtype.names:
        frame = Frame("table", {name: _column(name, source[name]) for name in source.dtype.names}, {})
    elif isinstance(source, Mapping):
        frame = Frame("table", {str(name): _column(str(name), values) for name, values in source.items()}, {})
    elif isinstance(source, Sequence) and source and all(isinstance(row, Mapping) for row in source):
        frame = Frame("table", _from_records(source), {})
    else:
        raise ConfigError(
            "a table is a path, a data frame, arrays by name or a structured array, not "
            f"{type(source).__name__}"
        )
    lengths = {name: len(array) for name, array in frame.columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{frame.name}: the columns differ in length: {lengths}")
    if not frame.columns or not len(frame):
        why = "; there is a header, but no rows" if frame.columns else ""
        raise DataError(f"{frame.name}: the data set is empty{why}")
    return frame


def _from_path(
    path: PathLike, query: str | None, delimiter: str | None, skip: bool, names: Sequence[str] | None
) -> Frame:
    name = str(path).lower()
    suffix = Path(name).suffix
    if query is not None:
        return Frame(str(path), _from_sqlite(path, query), {})
    if suffix in ARROW_SUFFIXES:
        return Frame(str(path), _from_arrow(read_arrow(path), str(path)), {})
    if is_saved(path):
        return Frame(str(path), _from_arrow(read_saved(path), str(path)), {})
    skipped: dict[str, int] = {}
    if name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        return Frame(str(path), _from_records(_json_rows(path, skip, skipped)), skipped)
    if delimiter is None:
        delimiter = "\t" if name.removesuffix(".gz").endswith(".tsv") else _delimiter(path)
    headless = False

    def named(first: list[str]) -> list[str] | None:
        nonlocal headless
        headless = (
            bool(first)
            and names is not None
            and not set(names) & set(first)
            and all(map(_NUMBER.fullmatch, first))
        )
        if not headless or names is None:
            _check_header(path, first)
            return None
        if len(first) != len(names):
            raise DataError(
                f"{path}: no header row, and {len(first)} columns where the model takes {len(names)}: "
                f"{', '.join(names)}"
            )
        return list(names)

    header, rows = read_table_rows(path, delimiter, skipped if skip else None, named)
    columns = [np.empty(len(rows), dtype=object) for _ in header]
    for place, column in enumerate(columns):
        column[:] = [row[place].strip() for row in rows]
        if delimiter == ";" and all(_DECIMAL_COMMA.fullmatch(cell) or is_missing(cell) for cell in column):
            column[:] = [cell.replace(",", ".") for cell in column]
    return Frame(str(path), dict(zip(header, columns, strict=True)), skipped, headless)


def _check_header(path: PathLike, first: Sequence[str]) -> None:
    """Refuse a first row of values; names may be numbers that ascend, such as places and wavelengths."""
    values = [float(cell) for cell in first if _NUMBER.fullmatch(cell)]
    if any(value != math.floor(value) for value in values) and not all(np.diff(values) > 0):
        raise DataError(
            f"{path}: the first row holds values ({', '.join(first[:4])}{', ...' if len(first) > 4 else ''}) "
            "where a header row with the columns' names is needed: write one"
        )


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?")


def _delimiter(path: PathLike) -> str:
    """What stands between the names in a header: a comma where there is one."""
    with open_text(path) as file:
        header = file.readline(1 << 20)
    return "," if "," in header else max(",;\t|", key=header.count)


def _json_rows(path: PathLike, skip: bool, skipped: dict[str, int]) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    with open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                if not skip:
                    raise DataError(
                        f"{path}: line {number} is no JSON object ({error}); repair it, or leave such lines "
                        "out with --skip-bad-rows"
                    ) from None
                skipped["no JSON object"] = skipped.get("no JSON object", 0) + 1
                continue
            rows.append(row)
    return rows


def _from_records(rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    names = dict.fromkeys(str(name) for row in rows for name in row)
    return {name: _column(name, [row.get(name) for row in rows]) for name in names}


def _from_sqlite(path: PathLike, query: str) -> dict[str, Array]:
    if not Path(path).is_file():
        raise StorageError(f"{path}: no such file")
    uri = f"{Path(path).resolve().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            cursor = connection.execute(unquote(query))
            if cursor.description is None:
                raise DataError(f"{path}: the query gives no rows; a SELECT is needed")
            names = [str(entry[0]) for entry in cursor.description]
            rows = cursor.fetchall()
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise DataError(f"{path}: the query fails: {error}") from None
    if len(set(names)) < len(names):
        raise DataError(f"{path}: the query gives two columns of one name: {', '.join(names)}")
    return {name: _column(name, [row[i] for row in rows]) for i, name in enumerate(names)}


def _pyarrow() -> Any:
    return optional_module("pyarrow", "pyarrow", "reading Parquet, Arrow and data frames")


def read_arrow(path: PathLike) -> Any:
    """The pyarrow table of a file with one of `ARROW_SUFFIXES`.

    Raises:
        DataError: it cannot be read.
        StorageError: there is no such file.
        ConfigError: pyarrow is missing.
    """
    kind, arrow = ARROW_SUFFIXES[Path(path).suffix.lower()], _pyarrow()
    module = optional_module(f"pyarrow.{kind}", "pyarrow", "reading Parquet and Arrow")
    with reading(path):
        if not Path(path).is_file():
            raise StorageError(f"{path}: no such file")
        try:
            return module.read_table(str(path))
        except arrow.ArrowException as error:
            if kind == "feather":  # a stream, which has no footer
                with contextlib.suppress(arrow.ArrowException), arrow.OSFile(str(path)) as file:
                    return arrow.ipc.open_stream(file).read_all()
            raise DataError(f"{path}: not a readable {kind} file ({str(error).splitlines()[0]})") from None


def _from_arrow(table: Any, where: str, named: Mapping[str, Sequence[str]] | None = None) -> dict[str, Array]:
    arrow = _pyarrow()
    named = named or class_names(table)
    compute = optional_module("pyarrow.compute", "pyarrow", "reading Arrow")
    types, columns = arrow.types, {}
    if len(set(table.column_names)) < len(table.column_names):
        raise DataError(f"{where}: two columns have one name: {', '.join(table.column_names)}")
    for name in table.column_names:
        column = table.column(name)
        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        if name in named and types.is_integer(kind):
            columns[name] = _named(where, name, column.to_pylist(), named[name])
            continue
        if types.is_boolean(kind):
            column, kind = column.cast(arrow.uint8()), arrow.uint8()
        if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
            numbers = column.cast(arrow.float64(), safe=False)
            columns[name] = numbers.to_numpy().astype(np.float64)
            continue
        if types.is_timestamp(kind) or types.is_date(kind):
            zone = getattr(kind, "tz", None)
            if zone is not None:
                column = column.cast(arrow.timestamp("us", tz="UTC")).cast(arrow.timestamp("us"))
            column = compute.strftime(
                column.cast(arrow.timestamp("s"), safe=False), format="%Y-%m-%d %H:%M:%S"
            )
        elif not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise DataError(
                f"{where}: column {name!r} holds {kind}; numbers, texts, booleans and dates are read: leave "
                "it out of the file, or make a column of each part; images are read with images:FILE"
            )
        texts = np.empty(len(column), dtype=object)
        texts[:] = ["" if text is None else text for text in column.to_pylist()]
        columns[name] = texts
    return columns


def _named(where: str, column: str, labels: Sequence[int | None], names: Sequence[str]) -> Array:
    """The names of class numbers, "" where there is none (null and -1)."""
    texts = np.empty(len(labels), dtype=object)
    for row, label in enumerate(labels):
        if label is not None and label >= len(names):
            raise DataError(f"{where}: row {row}, column {column!r}: label {label} of {len(names)} classes")
        texts[row] = "" if label is None or label < 0 else names[label]
    return texts


def _column(name: str, values: Any) -> Array:
    """float64 or str objects [N] of what a dictionary or a query holds."""
    array = values if isinstance(values, np.ndarray) else np.array(list(values), dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"column {name!r} has shape {list(array.shape)}; a column is [N]")
    if array.dtype.kind in "biuf":
        return array.astype(np.float64)
    if array.dtype.kind == "M":
        texts = np.datetime_as_string(array, unit="s").astype(object)
        return np.where(np.isnat(array), "", texts).astype(object)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind not in "OU":
        raise DataError(f"column {name!r} has dtype {array.dtype}; numbers, texts and dates are read")
    found = [_plain(name, value) for value in array.tolist()]
    if all(isinstance(value, float) for value in found):
        return np.array(found, dtype=np.float64)
    result = np.empty(len(found), dtype=object)
    result[:] = [
        "" if value != value else value if isinstance(value, str) else _text(value) for value in found
    ]
    return result


def _plain(name: str, value: Any) -> float | str:
    if value is None:
        return math.nan
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return float(value)
    if hasattr(value, "isoformat"):
        text = str(value.isoformat())
        return "" if text == "NaT" else text
    if hasattr(value, "__float__"):  # a decimal
        return float(value)
    if str(value) in ("NaT", "<NA>"):
        return math.nan
    raise DataError(f"column {name!r} holds {type(value).__name__}; numbers, texts and dates are read")


def _text(value: float) -> str:
    return str(int(value)) if value == np.floor(value) and abs(value) < 2**63 else repr(value)


def reads_numbers(texts: Iterable[str]) -> tuple[Array, Array]:
    """Cells as float64 [N], NaN where nothing is in them; and which hold something else, bool [N]."""
    words = {"true": 1.0, "false": 0.0}
    values, bad = [], []
    for text in texts:
        wrong, value = False, math.nan
        if not is_missing(text):
            try:
                value = float(text) if "_" not in text else math.nan
            except ValueError:
                value = words.get(text.lower(), math.nan)
            wrong = not math.isfinite(value)
        values.append(math.nan if wrong else value)
        bad.append(wrong)
    return np.array(values, dtype=np.float64), np.array(bad, dtype=np.bool_)


def texts_of(cells: Array) -> Array:
    """Cells as str objects [N]: whole numbers without a fraction, "" for what is missing."""
    if cells.dtype.kind == "O":
        return cells
    texts = np.empty(len(cells), dtype=object)
    texts[:] = ["" if value != value else _text(value) for value in cells.tolist()]
    return texts
