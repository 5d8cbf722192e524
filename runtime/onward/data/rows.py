"""Samples that stay where they are until a batch needs them: files, and other people's data sets."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from onward.data._files import PathLike, optional_module, reading
from onward.data.dataset import Array, Dataset
from onward.errors import ConfigError, DataError

__all__ = [
    "ArrayRows",
    "ParquetRows",
    "PartRows",
    "Rows",
    "SampleRows",
    "Samples",
    "load_npy",
    "open_npy",
    "open_parquet",
]

Indices = NDArray[np.int64]

_BLOCK_BYTES = 1 << 20
_PROBES = 64
_TARGETS = ("label", "labels", "target", "targets", "y")
_WEIGHT = "sample_weight"


class Samples(NamedTuple):
    """B samples as read: inputs by name, targets and weights."""

    inputs: dict[str, Array]
    targets: Array | None
    weights: Array | None


class Rows(ABC):
    """N samples that are read when they are needed.

    Attributes:
        name: of the data, in messages.
    """

    name: str

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def read(self, indices: Indices) -> Samples:
        """The samples at ascending indices of shape [B].

        Raises:
            DataError, StorageError: they cannot be read.
        """

    @abstractmethod
    def blocks(self) -> Indices | None:
        """Where runs of samples that are read at once begin, and N; None: each sample costs the same."""

    def numbers(self, indices: Indices) -> Indices:
        """The numbers by which messages name samples."""
        return indices

    def fingerprint(self) -> str:
        """sha256 (hexadecimal) over the number of samples and 64 of them, from first to last."""
        digest = hashlib.sha256(str(len(self)).encode())
        for sample in np.unique(np.linspace(0, len(self) - 1, _PROBES).astype(np.int64)):
            add_samples(digest, self.read(np.array([sample])))
        return digest.hexdigest()


@final
class ArrayRows(Rows):
    """Samples of arrays [N, ...]; those of .npy files and `numpy.memmap` are read from the file as needed.

    A file is read, not mapped: what has been read does not stay in the process's memory.

    Args:
        inputs: arrays, or paths of .npy files, by input name.
        targets: an array or a path.
        weights: how much each sample counts.
        name: of the data, in messages.

    Raises:
        DataError: a file is no .npy file of numbers in C order, or lengths differ.
    """

    def __init__(
        self,
        inputs: Mapping[str, Array | PathLike],
        targets: Array | PathLike | None = None,
        weights: Array | PathLike | None = None,
        *,
        name: str = "data",
    ) -> None:
        if not inputs:
            raise DataError(f"data set {name!r} has no inputs")
        self.name = name
        self._inputs = {key: _stored(key, value) for key, value in inputs.items()}
        self._targets = None if targets is None else _stored("targets", targets)
        self._weights = None if weights is None else _stored("weights", weights)
        others = {"targets": self._targets, "weights": self._weights}
        stored = self._inputs | {key: each for key, each in others.items() if each is not None}
        lengths = {key: len(each) for key, each in stored.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"data set {name!r}: numbers of samples differ: {lengths}")
        self._count = next(iter(lengths.values()))
        if not self._count:
            raise DataError(f"data set {name!r} is empty")
        self._row_bytes = sum(each.row_bytes for each in stored.values())

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Indices) -> Samples:
        return Samples(
            {key: each.read(indices) for key, each in self._inputs.items()},
            None if self._targets is None else self._targets.read(indices),
            None if self._weights is None else self._weights.read(indices),
        )

    def all_targets(self) -> Array | None:
        """The targets of all samples, [N, ...]."""
        return None if self._targets is None else self._targets.read(np.arange(self._count))

    def blocks(self) -> Indices:
        rows = max(1, _BLOCK_BYTES // max(1, self._row_bytes))
        return np.append(np.arange(0, self._count, rows, dtype=np.int64), self._count)


@final
class ParquetRows(Rows):
    """Rows of a Parquet or Arrow (.arrow, .feather) file, read by its row groups.

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

    def read(self, indices: Indices) -> Samples:
        groups = np.searchsorted(self._bounds, indices, side="right") - 1
        parts = [
            _taken(self._group(int(group)), indices[groups == group] - self._bounds[group])
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


@final
class SampleRows(Rows):
    """A map-style data set: an object whose `len` is the number of samples and whose items are samples.

    A sample is (input, target), (input, target, weight), or a mapping of inputs with one target that is
    called label, labels, target, targets or y, and maybe `sample_weight`: as torch's and Hugging Face's data
    sets have it. `__getitems__` fetches many at once where the object has it; Hugging Face's are asked for a
    list of rows.

    Args:
        data: the object.
        input: the name of an input that has none of its own.
        name: of the data, in messages.
    """

    def __init__(self, data: Any, input: str, *, name: str = "data") -> None:  # noqa: A002
        self.name, self._data, self._input = name, data, input
        if not len(data):
            raise DataError(f"data set {name!r} is empty")

    def __len__(self) -> int:
        return len(self._data)

    def blocks(self) -> None:
        return None

    def read(self, indices: Indices) -> Samples:
        wanted = indices.tolist()
        if hasattr(self._data, "column_names") and hasattr(self._data, "features"):
            return self._split(self._data[wanted], wanted)
        fetch = getattr(self._data, "__getitems__", None)
        found = list(fetch(wanted)) if fetch is not None else [self._data[i] for i in wanted]
        first = found[0]
        if isinstance(first, Mapping):
            return self._split({key: [each[key] for each in found] for key in first}, wanted)
        if not isinstance(first, tuple | list) or len(first) not in (2, 3):
            raise DataError(
                f"data set {self.name!r}: item {wanted[0]} is {type(first).__name__}; a sample is (input, "
                "target), (input, target, weight), or a mapping"
            )
        columns = list(zip(*found, strict=True))
        if isinstance(first[0], Mapping):
            inputs = {key: self._stacked(key, [x[key] for x in columns[0]], wanted) for key in first[0]}
        else:
            inputs = {self._input: self._stacked(self._input, columns[0], wanted)}
        weights = self._stacked("weights", columns[2], wanted) if len(columns) == 3 else None
        return Samples(inputs, self._stacked("targets", columns[1], wanted), weights)

    def _split(self, columns: Mapping[str, Any], indices: list[int]) -> Samples:
        targets = [key for key in columns if key in _TARGETS]
        if len(targets) != 1:
            raise DataError(
                f"data set {self.name!r}: one of its columns must be the target, called "
                f"{', '.join(_TARGETS)}; the columns are {', '.join(columns)}"
            )
        arrays = {key: self._stacked(key, values, indices) for key, values in columns.items()}
        weights, answer = arrays.pop(_WEIGHT, None), arrays.pop(targets[0])
        return Samples(arrays, answer, weights)

    def _stacked(self, key: str, values: Sequence[Any], indices: list[int]) -> Array:
        arrays = [np.asarray(value) for value in values]
        for index, array in zip(indices, arrays, strict=True):
            if array.shape != arrays[0].shape:
                raise DataError(
                    f"data set {self.name!r}, row {index}: {key!r} has shape {list(array.shape)}, another "
                    f"has {list(arrays[0].shape)}"
                )
        return np.stack(arrays)


@final
class PartRows(Rows):
    """Some of the samples, such as the training part: ascending indices, int64 [M]."""

    def __init__(self, whole: Rows, indices: Indices) -> None:
        self.name, self._whole, self.indices = whole.name, whole, indices

    def numbers(self, indices: Indices) -> Indices:
        return self._whole.numbers(self.indices[indices])

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Indices) -> Samples:
        return self._whole.read(self.indices[indices])

    def blocks(self) -> Indices | None:
        bounds = self._whole.blocks()
        return None if bounds is None else np.unique(np.searchsorted(self.indices, bounds))


def open_npy(folder: PathLike) -> ArrayRows:
    """The samples of a folder with x.npy, y.npy and maybe weights.npy, read as they are needed.

    Other .npy files are inputs of their names; x.npy may then be missing.

    Raises:
        StorageError: there is no such folder.
        DataError: there is no input, or a file cannot be read.
    """
    root = Path(folder)
    with reading(root):
        files = {file.stem: file for file in sorted(root.iterdir()) if file.suffix == ".npy"}
    targets, weights = files.pop("y", None), files.pop("weights", None)
    if not files:
        raise DataError(f"{folder}: no x.npy; a folder with x.npy [N, ...] and y.npy [N, ...] is needed")
    return ArrayRows(files, targets, weights, name=root.resolve().name)


def load_npy(folder: PathLike) -> Dataset:
    """The samples of a folder with x.npy, y.npy and maybe weights.npy, whose arrays stay in their files."""
    rows = open_npy(folder)
    arrays = {file.stem: np.load(file, mmap_mode="r") for file in sorted(Path(folder).glob("*.npy"))}
    targets, weights = arrays.pop("y", None), arrays.pop("weights", None)
    numbers = targets is not None and targets.dtype.kind == "f"
    return Dataset(
        arrays, targets, name=rows.name, task="regression" if numbers else "classification", weights=weights
    )


def open_parquet(path: PathLike, target: str | None, **options: Any) -> ParquetRows:
    """The rows of a Parquet or Arrow file, read as they are needed: see `ParquetRows`."""
    return ParquetRows(path, target, **options)


def add_samples(digest: Any, samples: Samples) -> None:
    """Add the bytes of samples, and what they are, to a hash."""
    for key, array in (*sorted(samples.inputs.items()), ("", samples.targets), (" ", samples.weights)):
        if array is not None:
            digest.update(f"{key}:{array.dtype.str}{list(array.shape[1:])}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())


def joined(parts: Sequence[Samples]) -> Samples:
    """Samples one after the other."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Samples(
        {key: np.concatenate([part.inputs[key] for part in parts]) for key in first.inputs},
        None
        if first.targets is None
        else np.concatenate([p.targets for p in parts if p.targets is not None]),
        None
        if first.weights is None
        else np.concatenate([p.weights for p in parts if p.weights is not None]),
    )


def _taken(samples: Samples, places: Indices) -> Samples:
    return Samples(
        {key: array[places] for key, array in samples.inputs.items()},
        None if samples.targets is None else samples.targets[places],
        None if samples.weights is None else samples.weights[places],
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


@final
class _File:
    """An array [N, ...] in C order that stands in a file from `offset` on."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._path, self._offset, self._shape, self._dtype = path, offset, shape, dtype
        self.row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        self._descriptor: int | None = None

    def __len__(self) -> int:
        return self._shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def read(self, indices: Indices) -> Array:
        first, last = int(indices[0]), int(indices[-1])
        if last - first + 1 == len(indices):
            return self._run(first, last + 1)
        if last - first + 1 <= 2 * len(indices):
            return self._run(first, last + 1)[indices - first]
        starts = np.flatnonzero(np.diff(indices, prepend=indices[0] - 2) != 1)
        runs = np.split(indices, starts[1:])
        out = np.empty((len(indices), *self._shape[1:]), self._dtype)
        place = 0
        for run in runs:
            self._fill(out[place : place + len(run)], int(run[0]))
            place += len(run)
        return out.astype(self._dtype.newbyteorder("="), copy=False)

    def _run(self, start: int, stop: int) -> Array:
        out = np.empty((stop - start, *self._shape[1:]), self._dtype)
        self._fill(out, start)
        return out.astype(self._dtype.newbyteorder("="), copy=False)

    def _fill(self, out: Array, start: int) -> None:
        with reading(self._path):
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            view = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
            at, done = self._offset + start * self.row_bytes, 0
            while done < len(view):
                read = os.preadv(self._descriptor, [view[done:]], at + done)
                if not read:
                    raise DataError(f"{self._path}: the file ends within row {start}; it is truncated")
                done += read


@final
class _Memory:
    """An array [N, ...] in memory."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._array)

    def read(self, indices: Indices) -> Array:
        return np.asarray(self._array[indices])


def _stored(key: str, value: Array | PathLike) -> _File | _Memory:
    if isinstance(value, str | os.PathLike):
        return _npy_file(Path(value))
    if isinstance(value, np.memmap) and value.flags.c_contiguous and value.filename and value.ndim:
        root: Any = value
        while isinstance(root.base, np.memmap):
            root = root.base
        at = value.__array_interface__["data"][0] - root.__array_interface__["data"][0]
        return _File(Path(value.filename), root.offset + at, value.shape, value.dtype)
    array = np.asanyarray(value)
    if array.ndim == 0:
        raise DataError(f"{key!r} is a scalar; the first dimension must count the samples")
    return _Memory(array)


def _npy_file(path: Path) -> _File:
    with reading(path), path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = header(file)
        except ValueError as error:
            raise DataError(f"{path}: not a readable .npy file ({error})") from None
        offset, size = file.tell(), path.stat().st_size
    if dtype.hasobject or dtype.kind not in "biuf" or not shape:
        raise DataError(f"{path}: holds {dtype} {list(shape)}; an array of numbers [N, ...] is needed")
    if fortran and len(shape) > 1:
        raise DataError(
            f"{path}: the array is in Fortran order; save numpy.ascontiguousarray of it, so that a sample "
            "stands in one place"
        )
    needed = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size < needed:
        raise DataError(f"{path}: has {size:,} bytes where its header asks for {needed:,}; it is truncated")
    return _File(path, offset, shape, dtype)
