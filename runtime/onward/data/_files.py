"""Opening data files: gzip by content, and one mapping from what can go wrong to Onward's errors."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast

from numpy.typing import NDArray

from onward.errors import ConfigError, DataError, StorageError

__all__ = [
    "PathLike",
    "ReadFiles",
    "open_binary",
    "optional_module",
    "read_in_turn",
    "read_rows",
    "read_table_rows",
    "reading",
    "stem",
]

PathLike = str | os.PathLike[str]

ReadFiles = Callable[[Sequence[Path], Callable[[Path], NDArray[Any]]], Iterator["NDArray[Any] | DataError"]]
"""Gives what a function makes of each file, in their order, or that it refuses it: in this process
(`read_in_turn`), or by several of which each reads some."""

_GZIP_MAGIC = b"\x1f\x8b"


def read_in_turn(
    files: Sequence[Path], read: Callable[[Path], NDArray[Any]]
) -> Iterator[NDArray[Any] | DataError]:
    """What a function makes of each file, or the DataError that it raises."""
    for file in files:
        try:
            yield read(file)
        except DataError as error:
            yield error


@contextmanager
def reading(path: PathLike) -> Iterator[None]:
    """Turn what reading `path` can raise into DataError (its content) or StorageError (the file itself)."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: the gzip stream is truncated or damaged ({error}); fetch the file again"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8 ({error.reason}); convert the file to UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(f"{path}: not a readable CSV file ({error})") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{path}: cannot be read ({reason}); check the path and its permissions"
        ) from error


@contextmanager
def open_binary(path: PathLike) -> Iterator[BinaryIO]:
    """Open `path` for reading bytes, unpacking gzip where the content (not the name) says so."""
    with reading(path):
        with Path(path).open("rb") as probe:
            packed = probe.read(2) == _GZIP_MAGIC
        with cast(BinaryIO, gzip.open(path, "rb") if packed else Path(path).open("rb")) as file:
            yield file


def read_rows(path: PathLike, delimiter: str = ",", *, any_length: bool = False) -> Iterator[list[str]]:
    """The rows of a UTF-8 CSV file with a header row, which comes first and is checked.

    A blank line is skipped. Raises DataError for a file without a header, a repeated or empty column name,
    and, unless `any_length`, a row whose number of fields differs from the header's. The header is row 0, the
    first sample row 1.
    """
    if len(delimiter) != 1:
        raise ConfigError(f"delimiter must be one character, not {delimiter!r}")
    with open_binary(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        rows = (row for row in csv.reader(text, delimiter=delimiter) if row)
        header = [column.strip() for column in next(rows, [])]
        if not header:
            raise DataError(f"{path}: the file is empty; a header row with column names is needed")
        for column in header:
            if not column or header.count(column) > 1:
                raise DataError(f"{path}: column name {column!r} is empty or repeated in the header {header}")
        yield header
        for number, row in enumerate(rows, start=1):
            if len(row) != len(header) and not any_length:
                raise DataError(
                    f"{path}: row {number} has {len(row)} fields, the header has {len(header)}; "
                    "check quotes and the delimiter, or leave such rows out with --skip-bad-rows"
                )
            yield row


def read_table_rows(
    path: PathLike, delimiter: str, skipped: dict[str, int] | None
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file.

    Args:
        path, delimiter: see `read_rows`.
        skipped: rows of another length than the header's are left out and counted here; None: refused.
    """
    if skipped is None:
        rows = read_rows(path, delimiter)
        return next(rows), list(rows)
    rows = read_rows(path, delimiter, any_length=True)
    header = next(rows)
    kept, wrong = [], 0
    for row in rows:
        if len(row) == len(header):
            kept.append(row)
        else:
            wrong += 1
    if wrong:
        skipped[f"not {len(header)} fields"] = wrong
    return header, kept


def optional_module(name: str, package: str, purpose: str, extra: str = "data") -> ModuleType:
    """Import `name`, or raise ConfigError that names the extra which brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{purpose} needs {package}: pip install 'onward[{extra}]'") from error


def stem(path: PathLike) -> str:
    """The file or folder name without its extensions, to name a data set by."""
    name = Path(path).resolve().name
    return name.split(".")[0] or name
