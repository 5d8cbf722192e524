"""Samples that stay where they are until a batch needs them: files, and other people's data sets."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from onward.data.dataset import Array
from onward.data.hugging_face import pixels
from onward.errors import DataError

__all__ = [
    "Indices",
    "OrderedRows",
    "PartRows",
    "Rows",
    "SampleRows",
    "Samples",
    "add_samples",
    "joined",
    "read_in_order",
    "split_columns",
    "taken",
]

Indices = NDArray[np.int64]

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
        whole_blocks: whether all of a block is read where any of it is asked for.
    """

    name: str
    whole_blocks: bool = False

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


class OrderedRows(Rows):
    """Rows that put each sample into its place as they read it, which spares a copy of all."""

    @abstractmethod
    def read_in_order(self, indices: Indices, order: Indices) -> Samples:
        """The samples at `indices[order]`: ascending indices of shape [B], a permutation of shape [B]."""


@final
class PartRows(Rows):
    """Some of the samples, such as the training part: ascending indices, int64 [M]."""

    def __init__(self, whole: Rows, indices: Indices) -> None:
        self.name, self.whole, self.indices = whole.name, whole, indices
        self.whole_blocks = whole.whole_blocks

    def fingerprint(self) -> str:
        """Samples are looked at where that does not read blocks of them; else which they are, and of what."""
        if not self.whole_blocks:
            return super().fingerprint()
        return hashlib.sha256(self.whole.fingerprint().encode() + self.indices.tobytes()).hexdigest()

    def numbers(self, indices: Indices) -> Indices:
        return self.whole.numbers(self.indices[indices])

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Indices) -> Samples:
        return self.whole.read(self.indices[indices])

    def blocks(self) -> Indices | None:
        bounds = self.whole.blocks()
        return None if bounds is None else np.unique(np.searchsorted(self.indices, bounds))


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
            return split_columns(self._data[wanted], wanted, self.name)
        fetch = getattr(self._data, "__getitems__", None)
        found = list(fetch(wanted)) if fetch is not None else [self._data[i] for i in wanted]
        first = found[0]
        if isinstance(first, Mapping):
            return split_columns({key: [each[key] for each in found] for key in first}, wanted, self.name)
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

    def _stacked(self, key: str, values: Sequence[Any], indices: list[int]) -> Array:
        return _stacked(key, values, indices, self.name)


def split_columns(columns: Mapping[str, Any], indices: Sequence[int], name: str) -> Samples:
    """Columns as inputs, the target and maybe sample weights: see `SampleRows`.

    Args:
        columns: lists of values by name.
        indices: the numbers of the samples, for messages.
        name: of the data, for messages.

    Raises:
        DataError: not one column is a target, or values of a column have different shapes.
    """
    targets = [key for key in columns if key in _TARGETS]
    if len(targets) != 1:
        raise DataError(
            f"data set {name!r}: one of its columns must be the target, called {', '.join(_TARGETS)}; the "
            f"columns are {', '.join(columns)}"
        )
    arrays = {key: _stacked(key, values, indices, name) for key, values in columns.items()}
    weights, answer = arrays.pop(_WEIGHT, None), arrays.pop(targets[0])
    return Samples(arrays, answer, weights)


def _stacked(key: str, values: Sequence[Any], indices: Sequence[int], name: str) -> Array:
    arrays = [pixels(value) for value in values]
    for index, array in zip(indices, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"data set {name!r}, row {index}: {key!r} has shape {list(array.shape)}, another has "
                f"{list(arrays[0].shape)}"
            )
    return np.stack(arrays)


def read_in_order(rows: Rows, indices: Indices, order: Indices) -> Samples:
    """The samples at `indices[order]` of any rows: see `OrderedRows`."""
    if isinstance(rows, PartRows):
        return read_in_order(rows.whole, rows.indices[indices], order)
    if isinstance(rows, OrderedRows):
        return rows.read_in_order(indices, order)
    return taken(rows.read(indices), order)


def taken(samples: Samples, places: Indices | slice) -> Samples:
    """The samples in some places, in that order; of a slice, views."""
    return Samples(
        {key: array[places] for key, array in samples.inputs.items()},
        None if samples.targets is None else samples.targets[places],
        None if samples.weights is None else samples.weights[places],
    )


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
