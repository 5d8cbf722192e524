"""Samples in arrays: in memory, or in .npy files of which a batch reads its part."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from onward.data._files import PathLike, reading
from onward.data.dataset import Array, Dataset
from onward.data.rows import Indices, OrderedRows, Samples
from onward.errors import DataError

__all__ = ["ArrayRows", "load_npy", "open_npy"]

_BLOCK_BYTES = 1 << 20
_SCATTERED_BYTES = 4096
"""Rows of this size or more are read into their places: for small ones, a list of places costs more than a
copy."""
_MOST_BUFFERS = 1024
"""IOV_MAX of Linux."""
_KEPT_BUFFERS, _KEPT_LEAST, _KEPT_MOST = 4, 1 << 20, 64 << 20
"""How many windows the reader of a file keeps to read others into, and of what sizes: memory that the system
has not given out before costs half as much again as the reading."""


@final
class ArrayRows(OrderedRows):
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

    def read_in_order(self, indices: Indices, order: Indices) -> Samples:
        return Samples(
            {key: each.read_in_order(indices, order) for key, each in self._inputs.items()},
            None if self._targets is None else self._targets.read_in_order(indices, order),
            None if self._weights is None else self._weights.read_in_order(indices, order),
        )

    def all_targets(self) -> Array | None:
        """The targets of all samples, [N, ...]."""
        return None if self._targets is None else self._targets.read(np.arange(self._count))

    def blocks(self) -> Indices:
        rows = max(1, _BLOCK_BYTES // max(1, self._row_bytes))
        return np.append(np.arange(0, self._count, rows, dtype=np.int64), self._count)


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


@final
class _File:
    """An array [N, ...] in C order that stands in a file from `offset` on."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._path, self._offset, self._shape, self._dtype = path, offset, shape, dtype
        self.row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        self._descriptor: int | None = None
        self._kept: list[tuple[bytearray, weakref.ref[Array]]] = []

    def __len__(self) -> int:
        return self._shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None, "_kept": []}

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

    def read_in_order(self, indices: Indices, order: Indices) -> Array:
        if self.row_bytes < _SCATTERED_BYTES:
            return self.read(indices)[order]
        out = self._room(len(indices))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        starts = np.flatnonzero(np.diff(indices, prepend=indices[0] - 2) != 1)
        for run in np.split(np.arange(len(indices)), starts[1:]):
            self._scatter(out, place[run], int(indices[run[0]]))
        return out.astype(self._dtype.newbyteorder("="), copy=False)

    def _room(self, rows: int) -> Array:
        """Memory for so many rows: that of rows that nobody looks at any more, or new."""
        shape = (rows, *self._shape[1:])
        size = rows * self.row_bytes
        if not _KEPT_LEAST <= size <= _KEPT_MOST:
            return np.empty(shape, self._dtype)
        free = (memory for memory, user in self._kept if len(memory) >= size and user() is None)
        memory = next(free, None) or bytearray(size)
        # a view of `whole` holds `whole`, as the memory is no array: when it is gone, so are they
        whole = np.frombuffer(memory, self._dtype, size // self._dtype.itemsize)
        others = [(other, user) for other, user in self._kept if other is not memory]
        self._kept = [*others[-_KEPT_BUFFERS + 1 :], (memory, weakref.ref(whole))]
        return whole.reshape(shape)

    def _run(self, start: int, stop: int) -> Array:
        out = self._room(stop - start)
        self._fill(out, start)
        return out.astype(self._dtype.newbyteorder("="), copy=False)

    def _fill(self, out: Array, start: int) -> None:
        view = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            done += self._read_into([view[done:]], start, done)

    def _scatter(self, out: Array, places: Indices, start: int) -> None:
        """Read the rows from `start` on into these places of `out`."""
        view = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        size = self.row_bytes
        buffers = [view[place * size : (place + 1) * size] for place in places.tolist()]
        done = 0
        while done < len(buffers):
            read = self._read_into(buffers[done : done + _MOST_BUFFERS], start + done, 0)
            if read < size:
                self._fill(out[places[done]], start + done)
            done += max(1, read // size)

    def _read_into(self, buffers: list[memoryview], row: int, skipped: int) -> int:
        """Read what stands `skipped` bytes behind the beginning of a row, and say how much it was."""
        with reading(self._path):
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            read = os.preadv(self._descriptor, buffers, self._offset + row * self.row_bytes + skipped)
        if not read:
            raise DataError(f"{self._path}: the file ends within row {row}; it is truncated")
        return read


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

    def read_in_order(self, indices: Indices, order: Indices) -> Array:
        return self.read(indices[order])


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
