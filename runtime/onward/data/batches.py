"""What a run takes its batches from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from onward.data.dataset import Array, Dataset

__all__ = ["Batch", "Batches"]


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """B samples: inputs by name, each [B, ...]; targets [B, ...] or None; indices in the data set [B]; sample
    weights float32 [B] or None."""

    inputs: dict[str, Array]
    targets: Array | None
    indices: NDArray[np.int64]
    weights: Array | None = None

    def __len__(self) -> int:
        return len(self.indices)


class Batches(ABC):
    """Batches, epoch by epoch, in an order that `seed` decides.

    `Loader` serves a data set in memory, `StreamLoader` samples that are read when they are needed, and
    `IterableBatches` what other code makes.

    Attributes:
        batch_size: samples in a batch; the last of an epoch may have fewer.
        seed: of the order.
        checked: whether all samples have been looked at; else each batch is, when it is served.
    """

    batch_size: int
    seed: int
    checked: bool = False

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

    @property
    def repeatable(self) -> bool:
        """Whether an epoch can be gone through again."""
        return True

    @abstractmethod
    def digest(self) -> str:
        """What tells these data from others, when a run is resumed."""
