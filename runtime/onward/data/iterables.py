"""Batches that other code makes, and which kind of batches serves what a caller gives."""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from onward.data.batches import Batch, Batches
from onward.data.counter import check_seed, permutation
from onward.data.dataset import Dataset
from onward.data.hugging_face import batches, is_iterable, refuse_splits
from onward.data.prefetch import ahead
from onward.data.rows import Rows, SampleRows, Samples, add_samples, split_columns
from onward.data.stream import Kind, StreamLoader
from onward.errors import ConfigError, DataError

__all__ = ["IterableBatches", "batches_of"]


@final
class IterableBatches(Batches):
    """Batches that other code makes: `Batch` objects, or (inputs, targets) or (inputs, targets, weights).

    What can be gone through again is served in an order that follows from (seed, epoch), and can be resumed:
    a list of batches (shuffled, where `shuffle`), an object that can be iterated over again, and a function
    that makes a fresh iterator, which is given the number of the epoch, from 0, if it takes an argument.
    Resuming goes through the batches before without training on them.

    A generator can be gone through once. Each epoch takes the next `steps` of it; it cannot be resumed.

    A function with parameters `rank` and `ranks` makes the batches of one rank alone: what all have in a step
    is one batch of the run. Ranks may have different numbers of batches and of samples in them.

    Args:
        data: where batches come from.
        input: the name of an input that has none of its own.
        steps: batches in an epoch. None: as many as there are; where `len` does not say so, they are counted
            by going through them once.
        seed: of the order of a list.
        shuffle: whether a list is shuffled.
        kind: what the targets mean.
        prefetch: how many batches a thread makes before they are asked for.
        rank, ranks: what a function is told that makes the batches of one rank.

    Raises:
        ConfigError: a generator without `steps`.
        DataError: what it gives are no batches.
    """

    def __init__(
        self,
        data: Iterable[Any] | Callable[..., Iterable[Any]],
        input: str,  # noqa: A002
        *,
        steps: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        kind: Kind = Kind(),
        prefetch: int = 2,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        check_seed(seed)
        if steps is not None and steps < 1:
            raise ConfigError(f"steps_per_epoch must be at least 1, got {steps}")
        self.rank, self.ranks = rank, ranks
        self.divided = _divides(data)
        self.seed, self._input, self._kind, self._prefetch = seed, input, kind, prefetch
        self._shuffle = shuffle
        self._data = data
        self._once = isinstance(data, Iterator)
        self._name = getattr(data, "__name__", type(data).__name__)
        if self.divided:
            self._name += f" (rank {rank} of {ranks})"
        if self._once and steps is None:
            raise ConfigError(
                "a generator does not say how many batches it has: give steps_per_epoch, or a function that "
                "makes a fresh one, such as fit(lambda: batches(path))"
            )
        self._served = 0
        first = next(iter(self._fresh(0)), None) if not self._once else next(iter(data), None)  # type: ignore[arg-type]
        if first is None:
            raise DataError(f"{self._name} gives no batches")
        if self._once:
            self._data = itertools.chain([first], data)  # type: ignore[arg-type]
        batch, self._sample = self._checked(first, 0, 0, 0)
        self.batch_size = len(batch)
        self._steps = self._own = steps if steps is not None else self._count()
        self._everyone: str | None = None

    @property
    def name(self) -> str:
        """What messages call the data."""
        return self._name

    @property
    def in_memory(self) -> bool:
        """Whether they are a list of batches."""
        return isinstance(self._data, list)

    def agree(self, gather: Callable[[Any], list[Any]]) -> None:
        """Let an epoch be as long as that of the rank with most batches, and batches those of all ranks.

        Args:
            gather: gives the values of all ranks in their order; each rank calls this.
        """
        everyone = gather((self._own, self.batch_size, self._sample.digest()))
        self._steps = max(own for own, _, _ in everyone)
        self.batch_size = sum(size for _, size, _ in everyone)
        self._everyone = hashlib.sha256("".join(digest for _, _, digest in everyone).encode()).hexdigest()

    @property
    def sample(self) -> Dataset:
        return self._sample

    def __len__(self) -> int:
        return self._steps

    def digest(self) -> str:
        """Of all batches of a list; else of the first one alone, or the first of each rank."""
        if self._everyone is not None:
            return self._everyone
        digest = hashlib.sha256()
        items: Iterable[Any] = self._data if isinstance(self._data, list) else ()
        for number, item in enumerate(items):
            batch, _ = self._checked(item, 0, number, 0)
            add_samples(digest, Samples(batch.inputs, batch.targets, batch.weights))
        return digest.hexdigest() if isinstance(self._data, list) else self._sample.digest()

    @property
    def repeatable(self) -> bool:
        """Whether an epoch can be gone through again."""
        return not self._once

    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Batch, None, None]:
        if self._once and epoch * self._steps + start_batch != self._served:
            raise ConfigError(
                "a generator can be gone through once: it cannot be resumed or repeated; give a function "
                "that makes a fresh one, such as fit(lambda: batches(path))"
            )
        if not 0 <= start_batch <= self._steps:
            raise ConfigError(f"no batch {start_batch} in epoch {epoch}: an epoch has {self._steps} batches")
        return ahead(self._batches(epoch, start_batch), self._prefetch)

    def dealt(self, rank: int, ranks: int) -> Generator[Batch, None, None]:
        """The batches of the first epoch that are this rank's; of batches for all, every `ranks`-th."""
        return self.epoch(0) if self.divided else super().dealt(rank, ranks)

    def _batches(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        items = iter(self._data if self._once else self._fresh(epoch))  # type: ignore[arg-type]
        row = 0
        try:
            for number in range(self._own):
                if self._once and number < start_batch:
                    continue
                item = next(items, _END)
                if item is _END:
                    raise DataError(
                        f"{self._name} ended after {number:,} batches of epoch {epoch + 1}, an epoch has "
                        f"{self._own:,}"
                        + (
                            "; let it go on for ever, or train fewer epochs or steps_per_epoch"
                            if self._once
                            else "; it must give as many each time"
                        )
                    )
                if number < start_batch:
                    row += len(self._plain(item, epoch, number, row)[1])
                    continue
                batch, _ = self._checked(item, epoch, number, row)
                row += len(batch)
                self._served += 1
                yield batch
        finally:
            if not self._once and hasattr(items, "close"):
                items.close()

    def _fresh(self, epoch: int) -> Iterable[Any]:
        data: Any = self._data
        if isinstance(data, list):
            order = permutation(len(data), self.seed, epoch) if self._shuffle else range(len(data))
            return (data[i] for i in order)
        if _indexed_batches(data):
            return (data[i] for i in range(len(data)))
        if callable(data) and not hasattr(data, "__iter__"):
            whose = {"rank": self.rank, "ranks": self.ranks} if self.divided else {}
            found: Iterable[Any] = data(epoch, **whose) if _takes_epoch(data) else data(**whose)
            return found
        return iter(data)

    def _count(self) -> int:
        data: Any = self._data
        if hasattr(data, "__len__"):
            return len(data)
        return sum(1 for _ in self._fresh(0))

    def _checked(self, item: Any, epoch: int, number: int, row: int) -> tuple[Batch, Dataset]:
        samples, rows = self._plain(item, epoch, number, row)
        name = f"{self._name}, batch {number + 1} of epoch {epoch + 1}"
        found = self._kind.dataset(samples, name, rows)
        return Batch(found.inputs, found.targets, rows, found.weights), found

    def _plain(self, item: Any, epoch: int, number: int, row: int) -> tuple[Samples, NDArray[np.int64]]:
        if isinstance(item, Batch):
            return Samples(item.inputs, item.targets, item.weights), item.indices
        if not isinstance(item, tuple | list) or len(item) not in (2, 3):
            what = (
                f"{type(item).__name__} of {len(item)}"
                if isinstance(item, tuple | list)
                else type(item).__name__
            )
            raise DataError(
                f"{self._name}, batch {number + 1} of epoch {epoch + 1}: {what} where a batch is needed: "
                "(inputs, targets), (inputs, targets, weights), or a Batch"
            )
        inputs = item[0] if isinstance(item[0], Mapping) else {self._input: item[0]}
        try:
            arrays = {key: np.asarray(values) for key, values in inputs.items()}
            targets, weights = np.asarray(item[1]), None if len(item) == 2 else np.asarray(item[2])
        except ValueError as error:
            raise DataError(f"{self._name}, batch {number + 1} of epoch {epoch + 1}: {error}") from None
        size = next((len(a) for a in arrays.values() if a.ndim), 0)
        return Samples(arrays, targets, weights), np.arange(row, row + size)


_END = object()


def batches_of(
    data: Any,
    input: str,  # noqa: A002
    batch_size: int,
    *,
    steps: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    kind: Kind = Kind(),
    prefetch: int = 2,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> Batches | None:
    """What serves `data` in batches; None where they are arrays or a data set, which are in memory.

    Args:
        data: rows, a map-style data set (`SampleRows`), Hugging Face's `IterableDataset`, or what
            `IterableBatches` takes.
        input: the name of an input that has none of its own.
        batch_size: of what gives samples; others come in batches.
        steps: batches in an epoch.
        seed, shuffle: of the order.
        kind: what the targets mean.
        prefetch, workers: see `StreamLoader`.
        rank, ranks: see `IterableBatches`.

    Raises:
        ConfigError, DataError: see `StreamLoader` and `IterableBatches`.
    """
    if isinstance(data, Batches):
        return data
    refuse_splits(data)
    if is_iterable(data):
        made = _HuggingFaceBatches(data, batch_size)
        return IterableBatches(made, input, steps=steps, seed=seed, kind=kind, prefetch=prefetch)
    if isinstance(data, Dataset | np.ndarray | Mapping | tuple | str | bytes) or hasattr(data, "__array__"):
        return None
    if isinstance(data, list) and not (data and all(isinstance(x, tuple | list | Batch) for x in data)):
        return None
    items = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, Rows) or (items and not isinstance(data, list) and not _indexed_batches(data)):
        rows = data if isinstance(data, Rows) else SampleRows(data, input, name=type(data).__name__)
        if steps is not None:
            raise ConfigError(
                "steps_per_epoch is for generators and iterables; the data say their own length"
            )
        return StreamLoader(
            rows, batch_size, seed, shuffle=shuffle, kind=kind, prefetch=prefetch, workers=workers
        )
    if not (isinstance(data, list) or hasattr(data, "__iter__") or callable(data)):
        return None
    if workers:
        raise ConfigError(
            "worker processes read map-style data sets and files; what a generator makes, it makes in one "
            "place: leave workers at 0, a thread goes ahead of the run"
        )
    return IterableBatches(
        data,
        input,
        steps=steps,
        seed=seed,
        shuffle=shuffle,
        kind=kind,
        prefetch=prefetch,
        rank=rank,
        ranks=ranks,
    )


@final
class _HuggingFaceBatches:
    """Makes the batches of each epoch of an `IterableDataset`."""

    def __init__(self, data: Any, batch_size: int) -> None:
        self._data, self._size, self.__name__ = data, batch_size, type(data).__name__

    def __call__(self, epoch: int) -> Iterator[Any]:
        row = 0
        for columns in batches(self._data, self._size, epoch):
            count = len(next(iter(columns.values()), ()))
            samples = split_columns(columns, range(row, row + count), self.__name__)
            row += count
            yield tuple(part for part in samples if part is not None)


def _indexed_batches(data: Any) -> bool:
    """Whether the items of an object are batches, as Keras's `PyDataset` has it."""
    return any(each.__name__ == "PyDataset" for each in type(data).__mro__)


_WHOSE = ("rank", "ranks")


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    if not callable(function) or hasattr(function, "__iter__"):
        return {}
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _takes_epoch(function: Callable[..., Any]) -> bool:
    return any(
        p.default is p.empty
        and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.name not in _WHOSE
        for p in _parameters(function).values()
    )


def _divides(data: Any) -> bool:
    """Whether a function makes the batches of one rank.

    Raises:
        ConfigError: it takes the rank, and not how many there are, or the other way around.
    """
    found = [name for name in _WHOSE if name in _parameters(data)]
    if len(found) == 1:
        raise ConfigError(
            f"{getattr(data, '__name__', type(data).__name__)} has a parameter {found[0]!r} alone; a "
            "function that makes the batches of one rank takes both, `rank` and `ranks`"
        )
    return bool(found)
