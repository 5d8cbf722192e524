"""Opening data files: gzip by content, and one mapping from what can go wrong to Onward's errors."""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import io
import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TextIO, cast

from numpy.typing import NDArray

from onward.errors import ConfigError, DataError, StorageError

__all__ = [
    "PathLike",
    "ReadFiles",
    "open_binary",
    "open_text",
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
    except UnicodeError as error:
        raise DataError(f"{path}: {_not_text(error)}") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a readable CSV file ({error})") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{path}: cannot be read ({reason}); check the path and its permissions"
        ) from error


def _not_text(error: UnicodeError) -> str:
    """What stands where a text cannot be decoded, as Windows would have it, and what to do."""
    if not isinstance(error, UnicodeDecodeError) or not error.encoding.lower().startswith("utf-8"):
        return f"begins as UTF-16, but is not ({error}); save the file as UTF-8"
    read = error.object[max(error.start - 12, 0) : error.start + 12].decode("cp1252", "replace")
    return (
        f"not UTF-8 near {' '.join(read.split())!r} (as CP1252 has it); save the file as UTF-8, or convert "
        "it: iconv -f CP1252 -t UTF-8"
    )


@contextmanager
def open_text(path: PathLike) -> Iterator[TextIO]:
    """Open `path` for reading text, as `open_binary`: UTF-8, or UTF-16 where it begins with its mark."""
    with open_binary(path) as raw:
        start = cast(Any, raw).peek(2)[:2]
        encoding = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        with io.TextIOWrapper(raw, encoding=encoding, newline="") as text:
            yield text


@contextmanager
def open_binary(path: PathLike) -> Iterator[BinaryIO]:
    """Open `path` for reading bytes, unpacking gzip where the content (not the name) says so."""
    with reading(path):
        with Path(path).open("rb") as probe:
            packed = probe.read(2) == _GZIP_MAGIC
        with cast(BinaryIO, gzip.open(path, "rb") if packed else Path(path).open("rb")) as file:
            yield file


def read_rows(
    path: PathLike,
    delimiter: str = ",",
    *,
    any_length: bool = False,
    names: Callable[[list[str]], list[str] | None] | None = None,
) -> Iterator[list[str]]:
    """The rows of a CSV file with a header row, which comes first and is checked.

    A blank line is skipped. A column without a name is called as in pandas, which writes row numbers so:
    "Unnamed: 0" where it is the first. Raises DataError for a file without a header, a repeated column name,
    and, unless `any_length`, a row whose number of fields differs from the header's. The header is row 0, the
    first sample row 1.

    names: gives the columns' names where the first row is no header, else None.
    """
    if len(delimiter) != 1:
        raise ConfigError(f"delimiter must be one character, not {delimiter!r}")
    with open_text(path) as text:
        rows: Iterator[list[str]] = (row for row in csv.reader(text, delimiter=delimiter) if row)
        header = [column.strip() for column in next(rows, [])]
        if names is not None and (found := names(header)) is not None:
            header, rows = found, itertools.chain([header], rows)
        header = [column or f"Unnamed: {place}" for place, column in enumerate(header)]
        if not header:
            raise DataError(f"{path}: the file is empty; a header row with column names is needed")
        for column in header:
            if header.count(column) > 1:
                raise DataError(
                    f"{path}: column name {column!r} is repeated in the header: {', '.join(header)}; "
                    "give each column a name of its own"
                )
        yield header
        for number, row in enumerate(rows, start=1):
            if len(row) != len(header) and not any_length:
                raise DataError(
                    f"{path}: row {number} has {len(row)} fields, the header has {len(header)}; "
                    "check quotes and the delimiter, or leave such rows out with --skip-bad-rows"
                )
            yield row


def read_table_rows(
    path: PathLike,
    delimiter: str,
    skipped: dict[str, int] | None,
    names: Callable[[list[str]], list[str] | None] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file.

    Args:
        path, delimiter, names: see `read_rows`.
        skipped: rows of another length than the header's are left out and counted here; None: refused.
    """
    if skipped is None:
        rows = read_rows(path, delimiter, names=names)
        return next(rows), list(rows)
    rows = read_rows(path, delimiter, any_length=True, names=names)
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
