"""Batches of rows that are read when they are needed."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from onward.data.augment import Augmentation
from onward.data.batches import Batch, Batches, Share
from onward.data.counter import check_seed, permutation
from onward.data.dataset import Dataset, Task
from onward.data.loader import image_input
from onward.data.prefetch import ahead, in_processes
from onward.data.rows import (
    Rows,
    Samples,
    joined,
    read_in_order,
    taken,
)
from onward.errors import ConfigError, DataError

__all__ = ["Kind", "StreamLoader"]

_SAMPLE = 32
_WINDOW_BYTES = 32 << 20
_LANES, _LANES_BYTES = 64, 256 << 20
_ROW_LANES = 8
"""Where rows are read one by one: what the system reads with a row, as its page, is its rank's too then."""
_GROUPS = 4
"""Groups of a rank, in a file that is made for so many."""
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

    Eight windows, of 4 MiB, are open at a time, side by side. Each has its part of each batch, so that ranks
    as many, or fewer, each read blocks of their own, and the order does not depend on how many there are.
    Where a block is read whole, as of Parquet, there are up to 64: as many as 256 MiB hold, a power of two.

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
        self._row_bytes = max(1, sum(a.nbytes for a in arrays) // len(first))
        self._lanes = self._side_by_side() if shuffle else 1
        self._window_rows = max(1, _WINDOW_BYTES // self._row_bytes // self._lanes)

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

    def part_read(self, ranks: int) -> float:
        """The largest part of the rows that one of so many ranks reads in the first epoch, by `shares`.

        All rows of a block that is read whole count.
        """
        if self._augment is not None and self._augment.mixes:
            return 1.0
        bounds = self.rows.blocks()
        if bounds is None or not self.rows.whole_blocks:
            return 1 / ranks
        sizes = np.diff(bounds)[self._order_of_blocks(0, len(bounds) - 1)]
        lanes = [self._lane_span(lane) for lane in range(self._lanes)]
        most = 0
        for rank in range(ranks):
            own = Share.of(self.batch_size, rank, ranks)
            read = np.zeros(len(sizes), bool)
            for share, _, begin, end in lanes:
                if own.first < share.first + share.count and share.first < own.first + own.count:
                    read |= _touched(sizes, begin, end)
            most = max(most, int(sizes[read].sum()))
        return most / len(self.rows)

    def advice(self, ranks: int) -> str:
        """What to do about blocks that several of so many ranks have to read; empty where they are small."""
        wanted = 1 << (min(ranks, _LANES) - 1).bit_length()
        if self._lanes >= min(wanted, self.batch_size) or not self.rows.whole_blocks:
            return ""
        fitting = min(_LANES_BYTES // (self._row_bytes * wanted), len(self.rows) // (_GROUPS * wanted))
        if fitting < 1:
            return ""
        return (
            f"{self.rows.name}: some of {ranks} ranks read {self.part_read(ranks):.0%} of the rows in an "
            f"epoch, since row groups, here of {self._largest_block():,} rows, are read whole; where groups "
            f"have at most {fitting:,} rows, each rank reads its own"
        )

    def _side_by_side(self) -> int:
        """How many windows are open at a time."""
        bounds = self.rows.blocks()
        if bounds is None:
            return 1
        fitting = _ROW_LANES
        if self.rows.whole_blocks:
            fitting = min(_LANES, _LANES_BYTES // (self._largest_block() * self._row_bytes))
        most = max(1, min(fitting, len(bounds) - 1, self.batch_size))
        return 1 << most.bit_length() - 1

    def _order_of_blocks(self, epoch: int, count: int) -> NDArray[np.int64]:
        return permutation(count, self.seed, epoch) if self._shuffle else np.arange(count)

    def _lane_span(self, lane: int) -> tuple[Share, Share, int, int]:
        """A lane's share of a full batch and of the last one, and where its rows begin and end, in the order
        of blocks.
        """
        full, rest = divmod(len(self.rows), self.batch_size)
        share, tail = (Share.of(size, lane, self._lanes) for size in (self.batch_size, rest))
        begin = full * share.first + tail.first
        return share, tail, begin, begin + full * share.count + tail.count

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
        blocks = self._order_of_blocks(epoch, len(bounds) - 1)
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
        full = len(self.rows) // self.batch_size
        share, tail, begin, end = self._lane_span(lane)
        sizes = np.diff(bounds)[blocks]
        starts = np.cumsum(np.append(0, sizes))
        inside = np.flatnonzero(_touched(sizes, begin, end))
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


def _touched(sizes: NDArray[np.int64], begin: int, end: int) -> NDArray[np.bool_]:
    """Which of blocks that stand in a row have some of the places from `begin` to `end`."""
    ends = np.cumsum(sizes)
    return (ends - sizes < end) & (ends > begin)


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
