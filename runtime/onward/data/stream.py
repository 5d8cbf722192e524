"""Batches of data that are not in memory: rows read when they are needed, and other people's iterables."""

from __future__ import annotations

import hashlib
import heapq
import inspect
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from onward.data.augment import Augmentation
from onward.data.batches import Batch, Batches, Share
from onward.data.counter import check_seed, permutation
from onward.data.dataset import Dataset, Task
from onward.data.hugging_face import batches, is_iterable, refuse_splits
from onward.data.loader import image_input
from onward.data.prefetch import ahead, in_processes
from onward.data.rows import (
    Rows,
    SampleRows,
    Samples,
    add_samples,
    joined,
    read_in_order,
    split_columns,
    taken,
)
from onward.errors import ConfigError, DataError

__all__ = ["IterableBatches", "Kind", "StreamLoader", "batches_of"]

_SAMPLE = 32
_WINDOW_BYTES = 32 << 20
_LANES, _LANES_BYTES = 64, 256 << 20
_DEALT_BLOCKS = 4
"""Of what is dealt out, blocks in a row: a batch that begins in one of the next rank's is read by both."""


@final
@dataclass(frozen=True)
class Kind:
    """What the targets of samples mean; see the fields of `Dataset` of these names. Task None: classification
    where targets are integers."""

    task: Task | None = None
    classes: tuple[str, ...] | None = None
    ignore_index: int | None = None

    def dataset(self, samples: Samples, name: str, rows: NDArray[np.int64]) -> Dataset:
        """The samples as a checked data set whose messages name rows by these numbers."""
        task = self.task
        if task is None:
            integers = samples.targets is None or samples.targets.dtype.kind in "biu"
            task = "classification" if integers else "regression"
        return Dataset(
            samples.inputs,
            samples.targets,
            classes=self.classes,
            name=name,
            task=task,
            ignore_index=self.ignore_index,
            weights=samples.weights,
            rows=rows,
        )


@final
class StreamLoader(Batches):
    """Serves rows in batches, and reads only what the next of them need.

    The order of epoch e depends on (seed, e) alone. Where each row costs the same to read, it is the order of
    a `Loader`. Otherwise blocks of rows that stand together are shuffled, and some blocks at a time, 32 MiB
    of them and at least one, are a window, whose rows are shuffled: memory holds two windows. `epoch(e, k)`
    goes on from batch k with the bytes of an uninterrupted run, without reading the windows before it.

    Where a block is read whole, as of Parquet, up to 64 windows are open at a time, side by side: as many as
    256 MiB hold, a power of two. Each has its part of each batch, so that ranks as many, or fewer, each read
    blocks of their own, and the order does not depend on how many there are.

    NaN, labels out of range and the like raise DataError when their window is read; it names the row.

    Args:
        rows: the samples.
        batch_size: at least 1.
        seed: of the order.
        shuffle: else the order is that of the rows.
        drop_last: leave the last batch out when it has fewer than `batch_size` samples.
        kind: what the targets mean.
        transform: changes what was read, such as `Preparation.apply`; pickled for worker processes.
        augment: as of `Loader`.
        prefetch: how many batches a thread makes before they are asked for; 0: none, and no thread.
        workers: processes that read windows, in place of the thread alone. Neither changes order or bytes.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        kind: Kind = Kind(),
        transform: Callable[[Dataset], Dataset] | None = None,
        augment: Augmentation | None = None,
        prefetch: int = 2,
        workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} must be 1 or more")
        if prefetch < 0 or workers < 0:
            raise ConfigError(f"prefetch {prefetch} and workers {workers} must be 0 or more")
        if drop_last and len(rows) < batch_size:
            raise ConfigError(f"drop_last with batch_size {batch_size} leaves nothing of {len(rows)} samples")
        check_seed(seed)
        self.batch_size, self.seed = batch_size, seed
        self.rows = rows
        self._shuffle, self._drop_last = shuffle, drop_last
        self._read = _Read(rows, kind, transform)
        self._prefetch, self._workers = prefetch, workers
        first = np.arange(min(_SAMPLE, len(rows)))
        self._sample = self._read.dataset(first, np.arange(len(first)))
        if self._sample.text_inputs:
            raise DataError(
                f"data set {rows.name!r}: input {self._sample.text_inputs[0]!r} is raw text; read it with "
                "`load_texts` or `load_table`, whose data a `Preparation` encodes"
            )
        self._augment = augment
        self._augment_input = None if augment is None else image_input(self._sample, None)
        raw = rows.read(first)
        arrays = [*raw.inputs.values(), *(a for a in (raw.targets, raw.weights) if a is not None)]
        row_bytes = max(1, sum(a.nbytes for a in arrays) // len(first))
        self._lanes = self._side_by_side(row_bytes) if shuffle else 1
        self._window_rows = max(1, _WINDOW_BYTES // row_bytes // self._lanes)

    @property
    def sample(self) -> Dataset:
        return self._sample

    def __len__(self) -> int:
        full, rest = divmod(len(self.rows), self.batch_size)
        return full + (1 if rest and not self._drop_last else 0)

    def digest(self) -> str:
        return self.rows.fingerprint()

    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Batch, None, None]:
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ConfigError(f"no batch {start_batch} in epoch {epoch}: an epoch has {len(self)} batches")
        return ahead(self._batches(epoch, start_batch), self._prefetch)

    def shares(self, epoch: int, start_batch: int, rank: int, ranks: int) -> Generator[Batch, None, None]:
        """What `epoch` gives, of each batch the share of a rank: no other rows are asked for.

        Where rows are read in blocks, a block with one of them is read.
        """
        if self._augment is not None and self._augment.mixes:
            return super().shares(epoch, start_batch, rank, ranks)
        return ahead(self._batches(epoch, start_batch, _Part(rank, ranks)), self._prefetch)

    def dealt(self, rank: int, ranks: int) -> Generator[Batch, None, None]:
        """Batches of the first epoch, dealt out in turns: see `run`; rows of others are not read."""
        return ahead(self._batches(0, 0, _Part(rank, ranks, shared=False)), self._prefetch)

    def run(self, ranks: int) -> int:
        """How many batches in a row `dealt` gives to one of so many ranks: some blocks of them."""
        if not self.rows.whole_blocks:
            return 1
        return min(-(-len(self) // ranks), _DEALT_BLOCKS * (self._largest_block() // self.batch_size + 1))

    def _largest_block(self) -> int:
        bounds = self.rows.blocks()
        return 1 if bounds is None else int(np.diff(bounds).max())

    def _side_by_side(self, row_bytes: int) -> int:
        """How many windows are open at a time."""
        bounds = self.rows.blocks()
        if bounds is None or not self.rows.whole_blocks:
            return 1
        fitting = _LANES_BYTES // (self._largest_block() * row_bytes)
        most = max(1, min(_LANES, len(bounds) - 1, self.batch_size, fitting))
        return 1 << most.bit_length() - 1

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The rows of epoch `epoch` in the order in which they are served: int64 [N]."""
        found = np.empty(len(self.rows), np.int64)
        for window in self._windows(epoch, 0):
            found[window.places] = window.rows[window.order]
        return found

    def _windows(self, epoch: int, start: int) -> Iterator[_Window]:
        """The windows of an epoch that reach place `start`, by the batches in which they begin."""
        count, bounds = len(self.rows), self.rows.blocks()
        if bounds is None:
            everything = permutation(count, self.seed, epoch) if self._shuffle else np.arange(count)
            first = start // self.batch_size * self.batch_size
            for place in range(first, count, self.batch_size):
                wanted = everything[place : place + self.batch_size]
                rows = np.sort(wanted)
                yield _Window(rows, np.searchsorted(rows, wanted), place + np.arange(len(wanted)))
            return
        blocks = np.arange(len(bounds) - 1)
        if self._shuffle:
            blocks = permutation(len(blocks), self.seed, epoch)
        lanes = (self._lane(epoch, start, lane, bounds, blocks) for lane in range(self._lanes))
        yield from heapq.merge(*lanes, key=lambda window: int(window.places[0]) // self.batch_size)

    def _lane(
        self, epoch: int, start: int, lane: int, bounds: NDArray[np.int64], blocks: NDArray[np.int64]
    ) -> Iterator[_Window]:
        """The windows of one lane, which serves its share of each batch.

        Args:
            epoch, start: as of `_windows`.
            lane: its number.
            bounds: of all blocks.
            blocks: their order in the epoch; the lane has the rows of some of them that follow each other.
        """
        full, rest = divmod(len(self.rows), self.batch_size)
        share, tail = (Share.of(size, lane, self._lanes) for size in (self.batch_size, rest))
        begin = full * share.first + tail.first
        end = begin + full * share.count + tail.count
        starts = np.cumsum(np.append(0, np.diff(bounds)[blocks]))
        inside = np.flatnonzero((starts[:-1] < end) & (starts[1:] > begin))
        done = number = 0
        parts: dict[int, NDArray[np.int64]] = {}
        for at in inside:
            first, last = max(starts[at], begin) - starts[at], min(starts[at + 1], end) - starts[at]
            parts[int(blocks[at])] = bounds[blocks[at]] + np.arange(first, last)
            held = sum(map(len, parts.values()))
            if held < self._window_rows and at != inside[-1]:
                continue
            batch, within = np.divmod(done + np.arange(held), share.count)
            places = np.where(
                batch < full,
                batch * self.batch_size + share.first + within,
                full * self.batch_size + tail.first + done + np.arange(held) - full * share.count,
            )
            if places[-1] >= start:
                rows = np.concatenate([parts[block] for block in sorted(parts)])
                stream = (epoch + 1 << 32) + (lane << 24) + number
                order = permutation(held, self.seed, stream) if self._shuffle else np.arange(held)
                yield _Window(rows, order, places)
            done, number, parts = done + held, number + 1, {}

    def _batches(
        self, epoch: int, start_batch: int, whose: _Part | None = None
    ) -> Generator[Batch, None, None]:
        windows, listed = itertools.tee(self._asked(epoch, start_batch, whose))
        wanted = ((window.rows, window.order) for window in listed)
        read = (
            in_processes(self._read, wanted, self._workers, self._prefetch)
            if self._workers
            else (self._read(task) for task in wanted)
        )
        opened: list[_Opened] = []
        try:
            for window, samples in zip(windows, read, strict=True):
                yield from self._complete(opened, window.first, epoch, whose)
                opened.append(_Opened(window, samples))
            yield from self._complete(opened, None, epoch, whose)
        finally:
            read.close()

    def _complete(
        self, opened: list[_Opened], end: int | None, epoch: int, whose: _Part | None
    ) -> Iterator[Batch]:
        """Batches from windows that are read, before number `end`. Used ones are dropped."""
        while opened:
            number = min(each.next for each in opened)
            if end is not None and number >= end:
                return
            parts = sorted((each for each in opened if each.next == number), key=lambda each: each.place)
            yield self._batch([each.take() for each in parts], epoch, number, whose)
            opened[:] = [each for each in opened if not each.empty]

    def _asked(self, epoch: int, start_batch: int, whose: _Part | None) -> Iterator[_Asked]:
        """Of each window the rows that are asked for; windows with none are left out."""
        start, end = start_batch * self.batch_size, len(self) * self.batch_size
        for window in self._windows(epoch, start):
            batches, within = np.divmod(window.places, self.batch_size)
            wanted = (window.places >= start) & (window.places < end)
            if whose is not None:
                wanted &= whose.has(batches, within, self._sizes(batches), self.run(whose.ranks))
            if not wanted.any():
                continue
            first = int(batches[0])
            if wanted.all():
                yield _Asked(window.rows, window.order, window.places, batches, first)
                continue
            read, order = np.unique(window.order[wanted], return_inverse=True)
            yield _Asked(window.rows[read], order, window.places[wanted], batches[wanted], first)

    def _sizes(self, batches: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many samples batches of these numbers have."""
        return np.minimum(self.batch_size, len(self.rows) - batches * self.batch_size)

    def _batch(
        self,
        parts: Sequence[tuple[Samples, NDArray[np.int64]]],
        epoch: int,
        number: int,
        whose: _Part | None,
    ) -> Batch:
        samples = joined([samples for samples, _ in parts])
        rows = np.concatenate([rows for _, rows in parts])
        inputs, name = samples.inputs, self._augment_input
        if self._augment is not None and name is not None:
            inputs = inputs | {name: self._augment(inputs[name], rows, seed=self.seed, epoch=epoch)}
        share = None
        if whose is not None and whose.shared and whose.ranks > 1:
            share = Share.of(int(self._sizes(np.array(number))), whose.rank, whose.ranks)
        return Batch(inputs, samples.targets, rows, samples.weights, share)


@final
@dataclass(frozen=True)
class _Part:
    """What a rank takes: a share of each batch, or some batches in turn."""

    rank: int
    ranks: int
    shared: bool = True

    def has(
        self, batches: NDArray[np.int64], within: NDArray[np.int64], sizes: NDArray[np.int64], run: int
    ) -> NDArray[np.bool_]:
        """Which samples are its own, by their batch, their place in it, and its size: see `Share.of`."""
        if not self.shared:
            return batches // run % self.ranks == self.rank
        first, last = sizes * self.rank // self.ranks, sizes * (self.rank + 1) // self.ranks
        return np.where(first < last, (first <= within) & (within < last), within == 0)


@final
@dataclass(frozen=True, eq=False)
class _Window:
    """Rows, ascending, that are read at once; in what order they are served, and in which places of the
    epoch, which ascend."""

    rows: NDArray[np.int64]
    order: NDArray[np.int64]
    places: NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class _Asked:
    """What is asked for of a window, and in which batches; the first batch of the whole window."""

    rows: NDArray[np.int64]
    order: NDArray[np.int64]
    places: NDArray[np.int64]
    batches: NDArray[np.int64]
    first: int


@final
class _Opened:
    """A window that is read, and how far its batches have been served."""

    def __init__(self, window: _Asked, samples: Samples) -> None:
        self._window, self._samples = window, samples
        self._numbers, starts = np.unique(window.batches, return_index=True)
        self._starts = np.append(starts, len(window.order))
        self._at = 0

    @property
    def empty(self) -> bool:
        """Whether all have been served."""
        return self._at == len(self._numbers)

    @property
    def next(self) -> int:
        """The number of the next batch."""
        return int(self._numbers[self._at])

    @property
    def place(self) -> int:
        """Where its part of that batch begins."""
        return int(self._window.places[self._starts[self._at]])

    def take(self) -> tuple[Samples, NDArray[np.int64]]:
        """Its part of the next batch, and which rows these are."""
        part = slice(self._starts[self._at], self._starts[self._at + 1])
        self._at += 1
        return taken(self._samples, part), self._window.rows[self._window.order[part]]


@final
@dataclass(frozen=True, eq=False)
class _Read:
    """Reads, checks and changes rows, in the order in which they are served; goes to worker processes."""

    rows: Rows
    kind: Kind
    transform: Callable[[Dataset], Dataset] | None

    def dataset(self, rows: NDArray[np.int64], order: NDArray[np.int64]) -> Dataset:
        """The samples of rows, ascending, put in an order."""
        samples = read_in_order(self.rows, rows, order)
        found = self.kind.dataset(samples, self.rows.name, self.rows.numbers(rows[order]))
        return found if self.transform is None else self.transform(found)

    def __call__(self, task: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Samples:
        found = self.dataset(*task)
        return Samples(found.inputs, found.targets, found.weights)


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
