"""Batches in an order that is a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Generator
from typing import final

import numpy as np
from numpy.typing import NDArray

from onward.data.augment import Augmentation
from onward.data.batches import Batch, Batches, Share
from onward.data.counter import check_seed, permutation
from onward.data.dataset import Dataset
from onward.errors import ConfigError, DataError

__all__ = ["Loader", "image_input"]


@final
class Loader(Batches):
    """Serves a data set in batches, epoch by epoch, without state of its own.

    The order of epoch e depends on (seed, e) alone, and a sample's augmentation on (seed, e, its index), so
    (epoch, batch) is all a checkpoint has to say about the data: `epoch(e, start_batch=k)` goes on from there
    with the bytes that the uninterrupted run would have seen.

    augment: changes the input `augment_input`, or the only float input of shape [N, C, H, W].
    drop_last: leave the last batch out when it has fewer than `batch_size` samples; otherwise it is served.

    Raises ConfigError for a bad batch size, seed or augmentation, and for `drop_last` that leaves nothing;
    DataError for raw text, which a `Vocabulary` must encode first.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        augment: Augmentation | None = None,
        augment_input: str | None = None,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} must be 1 or more")
        if drop_last and len(dataset) < batch_size:
            raise ConfigError(
                f"drop_last with batch_size {batch_size} leaves nothing of the {len(dataset)} samples of "
                f"{dataset.name!r}; make batches smaller"
            )
        if dataset.text_inputs:
            raise DataError(
                f"data set {dataset.name!r}: input {dataset.text_inputs[0]!r} is raw text; fit a Vocabulary "
                "on the training part and encode with its apply_to"
            )
        check_seed(seed)
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._augment = augment
        self._augment_input = None if augment is None else image_input(dataset, augment_input)

    checked = True

    @property
    def sample(self) -> Dataset:
        """All of them."""
        return self.dataset

    def digest(self) -> str:
        return self.dataset.digest()

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (1 if rest and not self._drop_last else 0)

    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Batch, None, None]:
        """The batches of epoch `epoch` (from 0), from batch `start_batch` on (from 0, at most `len`)."""
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ConfigError(f"no batch {start_batch} in epoch {epoch}: an epoch has {len(self)} batches")
        return self._batches(epoch, range(start_batch, len(self)), 0, 1)

    def shares(self, epoch: int, start_batch: int, rank: int, ranks: int) -> Generator[Batch, None, None]:
        """What `epoch` gives, of each batch the share of a rank: only its samples are read."""
        if self._augment is not None and self._augment.mixes:
            return super().shares(epoch, start_batch, rank, ranks)
        return self._batches(epoch, range(start_batch, len(self)), rank, ranks)

    def dealt(self, rank: int, ranks: int) -> Generator[Batch, None, None]:
        """Every `ranks`-th batch of the first epoch, from number `rank` on; others are not read."""
        return self._batches(0, range(rank, len(self), ranks), 0, 1)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The sample indices of epoch `epoch` in the order in which they are served: int64 [N]."""
        count = len(self.dataset)
        return permutation(count, self.seed, epoch) if self._shuffle else np.arange(count, dtype=np.int64)

    def _batches(self, epoch: int, numbers: range, rank: int, ranks: int) -> Generator[Batch, None, None]:
        order = self.order(epoch)
        targets, weights = self.dataset.targets, self.dataset.weights
        for number in numbers:
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            share = None if ranks == 1 else Share.of(len(indices), rank, ranks)
            indices = indices if share is None else indices[share.rows]
            inputs = {name: np.asarray(array[indices]) for name, array in self.dataset.inputs.items()}
            name = self._augment_input
            if self._augment is not None and name is not None:
                inputs[name] = self._augment(inputs[name], indices, seed=self.seed, epoch=epoch)
            yield Batch(
                inputs,
                None if targets is None else targets[indices],
                indices,
                None if weights is None else weights[indices],
                share,
            )


def image_input(dataset: Dataset, wanted: str | None) -> str:
    """The input that augmentation changes: `wanted`, or the only float input [N, C, H, W]."""
    names = [name for name, array in dataset.inputs.items() if array.ndim == 4 and array.dtype.kind == "f"]
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names and wanted is not None:
        return wanted
    if not names:
        raise ConfigError(
            f"augmentation changes images, float inputs [N, C, H, W]; data set {dataset.name!r} has none"
        )
    raise ConfigError(
        f"augmentation: input {wanted!r} is not the one to change; the float inputs [N, C, H, W] of "
        f"{dataset.name!r} are {names}; say which with augment_input"
    )
