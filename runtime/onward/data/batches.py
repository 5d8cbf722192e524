"""What a run takes its batches from."""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from onward.data.dataset import Array, Dataset

__all__ = ["Batch", "Batches", "Share"]


@final
@dataclass(frozen=True, slots=True)
class Share:
    """A rank's part of a batch.

    Attributes:
        first: position in the batch of the first sample.
        count: how many there are; 0 is allowed.
        whole: how many the batch has.
    """

    first: int
    count: int
    whole: int

    @classmethod
    def of(cls, whole: int, rank: int, ranks: int) -> Share:
        """The share of a rank: consecutive samples, no share more than one longer than another."""
        first, last = whole * rank // ranks, whole * (rank + 1) // ranks
        return cls(first, last - first, whole)

    @property
    def rows(self) -> slice:
        """Where its samples are in the batch; the first sample of the batch where it has none."""
        return slice(self.first, self.first + self.count) if self.count else slice(1)


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """B samples: inputs by name, each [B, ...]; targets [B, ...] or None; indices in the data set [B]; sample
    weights float32 [B] or None.

    Where the batch is divided among ranks, these are one rank's, and `share` says which. An empty share holds
    the batch's first sample, which does not count.
    """

    inputs: dict[str, Array]
    targets: Array | None
    indices: NDArray[np.int64]
    weights: Array | None = None
    share: Share | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def whole(self) -> int:
        """Samples of the batch over all ranks."""
        return len(self) if self.share is None else self.share.whole

    def part(self, rank: int, ranks: int) -> Batch:
        """The share of a rank."""
        share = Share.of(len(self), rank, ranks)
        rows = share.rows
        return Batch(
            {name: array[rows] for name, array in self.inputs.items()},
            None if self.targets is None else self.targets[rows],
            self.indices[rows],
            None if self.weights is None else self.weights[rows],
            share,
        )


class Batches(ABC):
    """Batches, epoch by epoch, in an order that `seed` decides.

    `Loader` serves a data set in memory, `StreamLoader` samples that are read when they are needed, and
    `IterableBatches` what other code makes.

    Attributes:
        batch_size: samples in a batch; the last of an epoch may have fewer.
        seed: of the order.
        checked: whether all samples have been looked at; else each batch is, when it is served.
        divided: whether batches are those of one rank alone: the rank's shares of what the run calls batches.
    """

    batch_size: int
    seed: int
    checked: bool = False
    divided: bool = False

    @property
    @abstractmethod
    def sample(self) -> Dataset:
        """Samples that show what kind all of them are of: names, types, shapes, classes, weights."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches in an epoch."""

    @abstractmethod
    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Batch, None, None]:
        """The batches of epoch `epoch` (from 0), from batch `start_batch` on (from 0, at most `len`).

        Closing the generator ends whatever works for it.
        """

    def shares(self, epoch: int, start_batch: int, rank: int, ranks: int) -> Generator[Batch, None, None]:
        """What `epoch` gives, of each batch the share of a rank."""
        with contextlib.closing(self.epoch(epoch, start_batch)) as batches:
            for batch in batches:
                yield batch.part(rank, ranks)

    def dealt(self, rank: int, ranks: int) -> Generator[Batch, None, None]:
        """Whole batches of the first epoch, dealt out in turns: see `run`."""
        with contextlib.closing(self.epoch(0)) as batches:
            yield from itertools.islice(batches, rank, None, ranks)

    def run(self, ranks: int) -> int:
        """How many batches in a row `dealt` gives to one of so many ranks."""
        return 1

    @property
    def repeatable(self) -> bool:
        """Whether an epoch can be gone through again."""
        return True

    @abstractmethod
    def digest(self) -> str:
        """What tells these data from others, when a run is resumed."""
