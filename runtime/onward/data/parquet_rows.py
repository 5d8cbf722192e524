"""Samples in columns of Parquet and Arrow files, read group by group."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from onward.data._files import PathLike, optional_module, reading
from onward.data.dataset import Array
from onward.data.rows import Indices, Rows, Samples, add_samples, joined, taken
from onward.errors import ConfigError, DataError

__all__ = ["ParquetRows", "open_parquet"]


@final
class ParquetRows(Rows):
    """Rows of a Parquet or Arrow (.arrow, .feather) file, read by its row groups.

    The groups of a Parquet file are compressed: a row is not to be had without its group.

    Args:
        path: the file.
        target: the column that is predicted; None: there is none.
        inputs: columns of numbers, which become one input "features", float32 [N, F]; or columns of lists of
            numbers of one length, each an input [N, K] of its name. None: all but the target's.
        weight: the column that says how much each row counts.
        classes: the target's values, ascending: targets are then their places.

    Raises:
        ConfigError: pyarrow is missing, or there is no such column.
        DataError: the file cannot be read, or a column holds no numbers.
    """

    def __init__(
        self,
        path: PathLike,
        target: str | None,
        *,
        inputs: Sequence[str] | None = None,
        weight: str | None = None,
        classes: Array | None = None,
    ) -> None:
        self._classes = classes
        self.path, self.name = Path(path), Path(path).name
        self._file: _Groups | None = None
        file = self._opened()
        asked = [*(inputs or ()), *([target] if target else []), *([weight] if weight else [])]
        if missing := [column for column in asked if column not in file.columns]:
            raise ConfigError(f"{path}: no column {missing[0]!r}; the columns are {', '.join(file.columns)}")
        self._target, self._weight = target, weight
        self._columns = list(inputs) if inputs else [c for c in file.columns if c not in (target, weight)]
        if not self._columns:
            raise DataError(f"{path}: no columns beside the target's")
        self._bounds = np.concatenate([[0], np.cumsum(file.sizes)]).astype(np.int64)
        if not len(self):
            raise DataError(f"{path}: there are no rows")
        self._kept: tuple[int, Samples] | None = None
        self.whole_blocks = not file.mapped

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    def flat(self) -> tuple[str, ...]:
        """The columns of numbers behind axis 1 of "features"."""
        kinds = self._opened().numeric
        return tuple(name for name in self._columns if kinds[name] == "number")

    def with_classes(self, classes: Array) -> ParquetRows:
        """The same with targets that are places among these values."""
        return ParquetRows(
            self.path, self._target, inputs=self._columns, weight=self._weight, classes=classes
        )

    @staticmethod
    def columns_of(path: PathLike) -> dict[str, str | None]:
        """A file's columns: "number", "list" of numbers, or None for anything else."""
        return _Groups(Path(path)).numeric

    def all_targets(self) -> Array | None:
        """The targets of all samples, [N, ...]."""
        if self._target is None:
            return None
        parts = [
            self._numbers(self._target, self._opened().read(group, [self._target])[self._target], int(start))
            for group, start in enumerate(self._bounds[:-1])
        ]
        return self._encoded(np.concatenate(parts), 0)

    def _encoded(self, values: Array, start: int) -> Array:
        """Targets as places among the classes."""
        if self._classes is None:
            return values
        places = np.minimum(np.searchsorted(self._classes, values), len(self._classes) - 1)
        wrong = self._classes[places] != values
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(f"{self.path}: row {start + row}: {values[row]!r} is no class")
        return places

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_kept": None}

    def blocks(self) -> Indices:
        return np.unique(self._bounds)

    def fingerprint(self) -> str:
        """sha256 (hexadecimal) over what the file says of its groups, and the first and last row."""
        digest = hashlib.sha256(repr((self._columns, self._target, self._weight)).encode())
        digest.update(self._opened().summary().encode())
        for row in np.unique([0, len(self) - 1]):
            add_samples(digest, self.read(np.array([row])))
        return digest.hexdigest()

    def read(self, indices: Indices) -> Samples:
        groups = np.searchsorted(self._bounds, indices, side="right") - 1
        parts = [
            taken(self._group(int(group)), indices[groups == group] - self._bounds[group])
            for group in np.unique(groups)
        ]
        return joined(parts)

    def _opened(self) -> _Groups:
        if self._file is None:
            self._file = _Groups(self.path)
        return self._file

    def _group(self, group: int) -> Samples:
        if self._kept is not None and self._kept[0] == group:
            return self._kept[1]
        wanted = [*self._columns, *([self._target] if self._target else [])]
        wanted += [self._weight] if self._weight else []
        columns = self._opened().read(group, wanted)
        start = int(self._bounds[group])
        found = {name: self._numbers(name, column, start) for name, column in columns.items()}
        flat = [found[name] for name in self._columns if found[name].ndim == 1]
        inputs = {name: found[name] for name in self._columns if found[name].ndim > 1}
        if flat:
            inputs["features"] = np.stack([column.astype(np.float32) for column in flat], axis=1)
        samples = Samples(
            inputs,
            self._encoded(found[self._target], start) if self._target else None,
            found[self._weight] if self._weight else None,
        )
        self._kept = group, samples
        return samples

    def _numbers(self, name: str, column: Any, start: int) -> Array:
        arrow = optional_module("pyarrow", "pyarrow", "reading Parquet and Arrow files")
        if column.null_count:
            row = start + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            raise DataError(f"{self.path}: row {row}, column {name!r}: the value is missing")
        if arrow.types.is_fixed_size_list(column.type) or arrow.types.is_list(column.type):
            lengths = np.array([len(each) for each in column.to_pylist()]) if len(column) else np.zeros(1)
            if (lengths != lengths[0]).any():
                row = start + int(np.argmax(lengths != lengths[0]))
                raise DataError(
                    f"{self.path}: row {row}, column {name!r}: lists of {lengths[0]} are needed, this one "
                    f"has {int(lengths[row - start])}"
                )
            values = column.flatten().to_numpy(zero_copy_only=False)
            return np.asarray(values.reshape(len(column), -1))
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype.kind not in "biuf":
            raise DataError(
                f"{self.path}: column {name!r} holds {column.type}; a file that is read piece by piece needs "
                "numbers (leave the column out, or read the file as a table with `load_table`)"
            )
        return np.asarray(values)


def open_parquet(path: PathLike, target: str | None, **options: Any) -> ParquetRows:
    """The rows of a Parquet or Arrow file, read as they are needed: see `ParquetRows`."""
    return ParquetRows(path, target, **options)


def _range_of(column: Any) -> str:
    known = column.statistics
    return (
        f"{column.total_compressed_size} {known.min}..{known.max}"
        if known is not None and known.has_min_max
        else ""
    )


def _kind(arrow: Any, column: Any) -> str | None:
    types = arrow.types
    if types.is_list(column) or types.is_fixed_size_list(column):
        return "list" if _kind(arrow, column.value_type) == "number" else None
    plain = types.is_integer(column) or types.is_floating(column) or types.is_boolean(column)
    return "number" if plain else None


@final
class _Groups:
    """A Parquet file's row groups, or an Arrow file's record batches."""

    def __init__(self, path: Path) -> None:
        optional_module("pyarrow", "pyarrow", "reading Parquet and Arrow files")
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        self._errors = arrow.ArrowException
        self._path = path
        with reading(path):
            try:
                if path.suffix.lower() in (".arrow", ".feather"):
                    self._ipc: Any = arrow.ipc.open_file(arrow.memory_map(str(path)))
                    count = self._ipc.num_record_batches
                    self.sizes = [self._ipc.get_batch(i).num_rows for i in range(count)]
                    schema = self._ipc.schema
                else:
                    self._ipc = None
                    self._parquet: Any = parquet.ParquetFile(path)
                    meta = self._parquet.metadata
                    self.sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
                    schema = self._parquet.schema_arrow
            except arrow.ArrowException as error:
                raise DataError(f"{path}: not a readable Parquet or Arrow file ({error})") from None
        self.columns = list(schema.names)
        self.numeric = {field.name: _kind(arrow, field.type) for field in schema}

    @property
    def mapped(self) -> bool:
        """Whether rows are had from the file without reading the rest of their group."""
        return self._ipc is not None

    def summary(self) -> str:
        """Names and types of the columns; sizes of the groups, and their ranges of values where known."""
        if self._ipc is not None:
            return repr((str(self._ipc.schema), self.sizes))
        meta = self._parquet.metadata
        groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
        return repr(
            (
                str(self._parquet.schema_arrow),
                [
                    [group.num_rows, group.total_byte_size, *map(_range_of, map(group.column, columns))]
                    for group in groups
                    for columns in [range(group.num_columns)]
                ],
            )
        )

    def read(self, group: int, columns: Sequence[str]) -> dict[str, Any]:
        with reading(self._path):
            try:
                if self._ipc is not None:
                    batch = self._ipc.get_batch(group)
                    return {name: batch.column(name) for name in columns}
                table = self._parquet.read_row_group(group, list(columns), use_threads=False)
                return {name: table.column(name).combine_chunks() for name in columns}
            except self._errors as error:
                raise DataError(f"{self._path}: row group {group} cannot be read ({error})") from None
