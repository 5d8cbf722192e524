"""Batches that are given whole: graphs, and whatever else has no common sample axis."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from onward.data._files import PathLike
from onward.data.batches import Batch, Batches
from onward.data.dataset import Array, Dataset, Task
from onward.data.npz import read_npz
from onward.errors import ConfigError, DataError, StorageError

__all__ = ["WholeBatch", "WholeBatches", "load_batches"]

WholeBatch = tuple[Mapping[str, Array], Array] | tuple[Mapping[str, Array], Array, Array]
"""Inputs by name, targets, and maybe weights."""


@final
class WholeBatches(Batches):
    """Batches that go to the model as they are, such as graphs of different sizes.

    Inputs need not have a first extent in common. The loss is a mean over the targets' first axis, that of
    nodes or of graphs; so are metrics.

    Args:
        batches: for each batch its inputs by name, targets [M, ...], and maybe weights [M], as a tuple.
        seed: of the order of batches, a different one in each epoch.
        shuffle: whether the order changes.
        task: what targets are: classification (labels) or regression.
        ignore_index: the label of targets that do not count.
        classes: names of the labels, if there are any.
        name: what messages call the data.

    Raises:
        ConfigError: there are no batches, or one is no such tuple.
        DataError: NaN, labels of a wrong type; names of inputs that differ between batches.
    """

    def __init__(
        self,
        batches: Sequence[WholeBatch],
        *,
        seed: int = 0,
        shuffle: bool = True,
        task: Task = "classification",
        ignore_index: int | None = None,
        classes: Sequence[str] | None = None,
        name: str = "batches",
    ) -> None:
        self.seed, self._shuffle = seed, shuffle
        self._sets: list[Dataset] = []
        for number, given in enumerate(batches):
            if not isinstance(given, tuple) or len(given) not in (2, 3) or not isinstance(given[0], Mapping):
                raise ConfigError(f"{name}, batch {number}: (inputs by name, targets) is needed")
            inputs, targets, *weights = given
            part = Dataset(
                dict(inputs),
                np.asarray(targets),
                name=f"{name}, batch {number}",
                task=task,
                ignore_index=ignore_index,
                classes=None if classes is None else tuple(classes),
                weights=weights[0] if weights else None,
                whole=True,
            )
            first = self._sets[0] if self._sets else part
            if set(part.inputs) != set(first.inputs) or (part.weights is None) != (first.weights is None):
                raise DataError(
                    f"{part.name} has other inputs than {first.name}, or weights where that has none"
                )
            self._sets.append(part)
        if not self._sets:
            raise ConfigError(f"{name}: there are no batches")
        self.batch_size = max(map(len, self._sets))

    @property
    def batches(self) -> tuple[Dataset, ...]:
        """All of them, in the order in which they were given."""
        return tuple(self._sets)

    def mapped(self, function: Callable[[Dataset], Dataset]) -> WholeBatches:
        """The batches as a function of each makes them."""
        found = copy.copy(self)
        found._sets = [function(part) for part in self._sets]
        return found

    @property
    def sample(self) -> Dataset:
        """The first batch."""
        return self._sets[0]

    def __len__(self) -> int:
        return len(self._sets)

    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Batch, None, None]:
        """See `Batches`."""
        order = np.arange(len(self._sets))
        if self._shuffle:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
        for number in order[start_batch:]:
            part = self._sets[number]
            yield Batch(dict(part.inputs), part.targets, np.arange(len(part)), part.weights)

    def shares(self, epoch: int, start_batch: int, rank: int, ranks: int) -> Generator[Batch, None, None]:
        """Refused: a batch that is whole cannot be divided among ranks."""
        raise ConfigError("batches that are given whole cannot be divided among ranks: train in one process")

    def digest(self) -> str:
        """See `Batches`."""
        found = hashlib.sha256()
        for part in self._sets:
            arrays: dict[str, Any] = {**part.inputs, "targets": part.targets, "weights": part.weights}
            for key, array in arrays.items():
                if array is not None:
                    found.update(f"{key}:{array.dtype}{array.shape}".encode() + array.tobytes())
        return found.hexdigest()


def load_batches(folder: PathLike, target: str = "y", *, weight: str | None = None) -> list[WholeBatch]:
    """Batches for `WholeBatches` from a folder with an .npz file for each, in the order of their names.

    Args:
        folder: its files hold arrays by the names of the model's inputs, and targets.
        target: the name of the targets.
        weight: the name of the targets' weights, if there are any.

    Raises:
        DataError: a file is not readable, or lacks an array.
        StorageError: there is no such folder, or it has no .npz file.
    """
    paths = sorted(Path(folder).glob("*.npz"))
    if not paths:
        raise StorageError(f"{folder}: no folder with an .npz file for each batch")
    found: list[WholeBatch] = []
    for path in paths:
        arrays = read_npz(path)
        for name in (target, *([] if weight is None else [weight])):
            if name not in arrays:
                raise DataError(f"{path}: no array {name!r}; the arrays are {', '.join(arrays) or '(none)'}")
        targets = arrays.pop(target)
        found.append((arrays, targets) if weight is None else (arrays, targets, arrays.pop(weight)))
    return found
