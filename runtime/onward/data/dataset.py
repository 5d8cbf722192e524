"""A data set in memory: named inputs, targets, and what they mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onward.errors import DataError

__all__ = ["Array", "Dataset", "Task"]

Array = NDArray[Any]
Task = Literal["classification", "regression"]

_CHUNK_ELEMENTS = 1 << 18


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """N samples: inputs by name, their targets, and what the targets mean.

    inputs: each of shape [N, ...]; bool, integer or float (a `numpy.memmap` stays on disk), or str objects
        of shape [N] for raw text, which a `Vocabulary` turns into integers.
    targets: None for data without answers; integers of shape [N, ...] for classification (kept as int64);
        floats of shape [N, K] for regression (kept as float32 or float64; [N] is taken as [N, 1]).
    classes: the names of classes 0, 1, ...; labels must lie in range(len(classes)). Of targets [N, L] that
        are 0 or 1, the names of the L labels.
    ignore_index: a label, of no class or of one, whose samples do not count: see `CrossEntropy`.
    weights: [N], at least 0: how much each sample counts in the loss; a weight of 2 is the sample twice, 0 is
        none. Kept as float32; None: all count 1.
    groups: int64 of shape [N]; `split` keeps samples with the same number in one part.
    columns: of a table, the column names behind axis 1 of its input.
    table: whether the inputs are columns of a table as read, [N, 1] each, or its numbers, [N, F]; NaN and
        empty texts are then what is missing. A `TablePreparation` makes features of them.
    target_columns: the columns of a table that the targets are.
    text_column: the column of a table that texts are from.
    times: [N], when each sample was taken: `split` then puts the latest into the last part.
    rows: int64 of shape [N], the numbers of the samples in what they were read from: messages name rows by
        them; None: 0, 1, ...
    rate: of sounds [N, samples], how many samples a second has; `Preparation.fit` makes spectrograms of them.
    whole: one batch that is not divided, of which only targets and weights are by sample: inputs may have
        any first extents, such as the nodes and the edges of a graph.
    notes: what a reader did that its user should know, such as rows that it left out.

    Arrays are held as read-only views. Raises DataError for no samples, lengths that differ, NaN or Inf,
    and labels of a wrong type or out of range; it names the input and the first bad row (from 0).
    """

    inputs: dict[str, Array]
    targets: Array | None = None
    classes: tuple[str, ...] | None = None
    name: str = "data"
    task: Task = "classification"
    groups: Array | None = None
    ignore_index: int | None = None
    columns: tuple[str, ...] | None = None
    table: bool = False
    target_columns: tuple[str, ...] | None = None
    text_column: str | None = None
    times: Array | None = None
    notes: tuple[str, ...] = ()
    weights: Array | None = None
    rows: Array | None = None
    rate: int | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if self.task not in ("classification", "regression"):
            raise DataError(
                f"data set {self.name!r}: task {self.task!r} is neither classification nor regression"
            )
        if not self.inputs:
            raise DataError(f"data set {self.name!r} has no inputs")
        inputs = {name: self._checked_input(name, np.asanyarray(a)) for name, a in self.inputs.items()}
        lengths = {} if self.whole else {name: len(array) for name, array in inputs.items()}
        targets = None if self.targets is None else self._checked_targets(np.asanyarray(self.targets))
        if targets is not None:
            lengths["targets"] = len(targets)
        groups = None if self.groups is None else np.asarray(self.groups)
        if groups is not None:
            if groups.ndim != 1 or groups.dtype.kind not in "iu":
                raise DataError(f"data set {self.name!r}: groups must be integers of shape [N]")
            groups = groups.astype(np.int64, copy=False)
            lengths["groups"] = len(groups)
        if self.times is not None:
            object.__setattr__(self, "times", _read_only(np.asarray(self.times, dtype=np.float64)))
            lengths["times"] = len(self.times)
        weights = None if self.weights is None else self._checked_weights(np.asarray(self.weights))
        if weights is not None:
            lengths["weights"] = len(weights)
        if len(set(lengths.values())) > 1:
            raise DataError(f"data set {self.name!r}: numbers of samples differ: {lengths}")
        if 0 in lengths.values():
            raise DataError(f"data set {self.name!r} is empty")
        classes = None if self.classes is None else tuple(str(c) for c in self.classes)
        object.__setattr__(self, "inputs", {name: _read_only(array) for name, array in inputs.items()})
        object.__setattr__(self, "targets", None if targets is None else _read_only(targets))
        object.__setattr__(self, "groups", None if groups is None else _read_only(groups))
        object.__setattr__(self, "weights", None if weights is None else _read_only(weights))
        object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        if self.whole and self.targets is not None:
            return len(self.targets)
        return len(next(iter(self.inputs.values())))

    @property
    def text_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that hold raw text."""
        if self.table:
            return ()
        return tuple(name for name, array in self.inputs.items() if array.dtype.kind == "O")

    @property
    def class_count(self) -> int | None:
        """How many classes there are: the names given, or the largest label + 1; None for regression."""
        if self.task == "regression":
            return None
        if self.classes is not None:
            return len(self.classes)
        if self.targets is None:
            return None
        counted = (
            self.targets if self.ignore_index is None else self.targets[self.targets != self.ignore_index]
        )
        return int(counted.max(initial=-1)) + 1

    def take(self, indices: ArrayLike) -> Dataset:
        """The samples at `indices` (integers of shape [M], each in range(N)), in that order."""
        if self.whole:
            raise DataError(f"data set {self.name!r} is one batch, of which no samples can be taken")
        index = np.asarray(indices)
        if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
            raise DataError(
                f"data set {self.name!r}: indices must be integers of shape [M], not {index.dtype}"
            )
        if index.size == 0:
            raise DataError(f"data set {self.name!r}: no indices, so the result would be empty")
        if index.min() < 0 or index.max() >= len(self):
            bad = index[(index < 0) | (index >= len(self))][0]
            raise DataError(f"data set {self.name!r}: index {bad} is outside its {len(self)} samples")
        return replace(
            self,
            inputs={name: np.asarray(array[index]) for name, array in self.inputs.items()},
            targets=None if self.targets is None else np.asarray(self.targets[index]),
            groups=None if self.groups is None else self.groups[index],
            times=None if self.times is None else self.times[index],
            weights=None if self.weights is None else self.weights[index],
            rows=None if self.rows is None else self.rows[index],
        )

    def row(self, place: int) -> int:
        """The number by which messages name the sample in a place."""
        return place if self.rows is None else int(self.rows[place])

    def with_inputs(self, inputs: dict[str, Array]) -> Dataset:
        """The same samples with other inputs: what an encoder or a normalisation returns."""
        return replace(self, inputs=inputs)

    def digest(self) -> str:
        """sha256 (hexadecimal) over names, dtypes, shapes and bytes of all arrays but groups, and classes.

        Independent of the order of inputs, of the machine's byte order and of `name`; equal digests mean
        equal data.
        """
        digest = hashlib.sha256()
        parts = [("input " + name, self.inputs[name]) for name in sorted(self.inputs)]
        if self.targets is not None:
            parts.append(("targets", self.targets))
        if self.weights is not None:
            parts.append(("weights", self.weights))
        for label, array in parts:
            dtype = array.dtype.newbyteorder("<")
            digest.update(json.dumps([label, dtype.str, list(array.shape)]).encode())
            for chunk in _chunks(array):
                if dtype.kind == "O":
                    for text in chunk.reshape(-1):
                        data = text.encode("utf-8", "surrogatepass")
                        digest.update(len(data).to_bytes(8, "little") + data)
                else:
                    digest.update(np.ascontiguousarray(chunk, dtype=dtype).tobytes())
        ignored = [] if self.ignore_index is None else [self.ignore_index]
        digest.update(json.dumps([self.task, self.classes, *ignored]).encode())
        return digest.hexdigest()

    def _checked_input(self, name: str, array: Array) -> Array:
        where = f"data set {self.name!r}, input {name!r}"
        if array.ndim == 0:
            raise DataError(f"{where} is a scalar; the first dimension must count the samples")
        if array.dtype.kind == "U":
            array = array.astype(object)
        if array.dtype.kind == "O" and not self.table:
            array = _numbers_of(where, array)
        if array.dtype.kind == "O":
            if array.ndim != 1 and not (self.table and array.shape[1:] == (1,)):
                raise DataError(f"{where}: text must have shape [N], not {list(array.shape)}")
            for row, text in enumerate(array.reshape(-1)):
                if not isinstance(text, str):
                    raise DataError(
                        f"{where}, row {self.row(row)}: {type(text).__name__} where text (str) is needed"
                    )
            return array
        if array.dtype.kind not in "biuf":
            raise DataError(f"{where} has dtype {array.dtype}; bool, integer, float or text is needed")
        _refuse_nonfinite(where, array, self.rows, missing=self.table)
        return _native(array)

    def _checked_weights(self, weights: Array) -> Array:
        where = f"data set {self.name!r}, sample weights"
        if weights.ndim != 1 or weights.dtype.kind not in "biuf":
            raise DataError(
                f"{where} must be numbers of shape [N], not {weights.dtype} {list(weights.shape)}"
            )
        _refuse_nonfinite(where, weights, self.rows)
        if (weights < 0).any():
            row = int(np.argmax(weights < 0))
            raise DataError(f"{where}, row {self.row(row)}: {weights[row]} is below 0")
        return weights.astype(np.float32)

    def _checked_targets(self, targets: Array) -> Array:
        where = f"data set {self.name!r}, targets"
        if targets.ndim == 0:
            raise DataError(f"{where} is a scalar; the first dimension must count the samples")
        if self.task == "regression":
            if targets.dtype.kind not in "biuf":
                raise DataError(f"{where} have dtype {targets.dtype}; regression needs numbers")
            _refuse_nonfinite(where, targets, self.rows)
            if targets.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
                targets = targets.astype(np.float32)
            return targets[:, None] if targets.ndim == 1 else targets
        if targets.dtype.kind not in "biu":
            raise DataError(
                f"{where} have dtype {targets.dtype}; class labels must be integers "
                "(for numbers to be predicted, say task='regression')"
            )
        limit = np.iinfo(np.int64).max if self.classes is None else len(self.classes)
        bad = (targets < 0) | (targets >= limit) if targets.dtype.kind != "b" else targets >= limit
        if self.ignore_index is not None:
            bad = bad & (targets != self.ignore_index)
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            label = targets[bad].ravel()[0]
            allowed = "0 or more" if self.classes is None else f"0 to {limit - 1}, one of {limit} classes"
            raise DataError(
                f"{where}, row {self.row(row)}: label {label} is out of range; it must be {allowed}"
            )
        return targets.astype(np.int64, copy=False)


def _native(array: Array) -> Array:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _numbers_of(where: str, array: Array) -> Array:
    """Objects that are numbers, such as of a data frame with columns of several types, as float64."""
    flat = array.reshape(-1)
    kinds = {type(value) for value in flat}
    if kinds and all(issubclass(kind, (bool, int, float, np.number, np.bool_)) for kind in kinds):
        return array.astype(np.float64)
    if array.ndim > 1 and len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(
            f"{where} holds {names} side by side; give numbers, or a table (onward.data.load_table, "
            "`onward train --data`), whose columns become numbers"
        )
    return array


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _chunks(array: Array) -> Iterator[Array]:
    """Runs of rows small enough that a memory-mapped array is never read as a whole."""
    rows = max(1, _CHUNK_ELEMENTS // max(1, array[:1].size))
    for start in range(0, len(array), rows):
        yield np.asarray(array[start : start + rows])


def _refuse_nonfinite(where: str, array: Array, rows: Array | None, *, missing: bool = False) -> None:
    if array.dtype.kind != "f":
        return
    start = 0
    for chunk in _chunks(array):
        finite = np.isfinite(chunk)
        if missing:
            finite |= np.isnan(chunk)
        if not finite.all():
            place = np.argwhere(~finite)[0]
            value = chunk[tuple(place)]
            rest = f", element {[int(i) for i in place[1:]]}" if len(place) > 1 else ""
            row = start + int(place[0])
            number = row if rows is None else rows[row]
            raise DataError(f"{where}, row {number}{rest}: {value}; remove or repair such rows")
        start += len(chunk)
