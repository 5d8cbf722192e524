"""Loaders of whatever `fit` and `evaluate` are given."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

from onward.data import Batches, IterableBatches, Loader, StreamLoader, batches_of
from onward.errors import ConfigError
from onward.graph import Array, TensorSpec
from onward.parallel import Group
from onward.train.feeding import Inputs, Samples, as_dataset, kind_for, parts_of, rows_of, split_off
from onward.train.losses import Loss

__all__ = ["Loading"]


@final
@dataclass(frozen=True, eq=False)
class Loading:
    """How one trainer's data become batches.

    Attributes:
        inputs: of the model.
        losses: by output.
        seed: of the order of samples.
        group: ranks that train one model.
    """

    inputs: Sequence[TensorSpec]
    losses: Mapping[str, Loss]
    seed: int
    group: Group | None = None

    def training(
        self,
        data: Samples | Inputs,
        targets: Array | None,
        weights: Array | None,
        size: int,
        *,
        validation: Samples | None = None,
        split: float = 0.0,
        shuffle: bool = True,
        steps: int | None = None,
        prefetch: int = 2,
        workers: int = 0,
    ) -> tuple[Batches, Samples | None]:
        """The loader, and what is evaluated on.

        Args:
            data, targets, weights, steps, prefetch, workers: as `Trainer.fit` takes them.
            size: samples a batch, where a loader has to be made.
            validation: what is evaluated on, where it is not split off.
            split: the share of samples to hold back.
            shuffle: whether each epoch has its own order.

        Raises:
            ConfigError: things that exclude each other, or data that do not fit the model.
        """
        if isinstance(data, Batches):
            if targets is not None or weights is not None or split:
                raise ConfigError(
                    "a loader decides what is trained on: give targets, sample_weight and validation_split "
                    "with arrays or a data set"
                )
            if steps is not None or workers:
                raise ConfigError("a loader has its own steps and workers: give it those")
            return self._on_ranks(data), validation
        if isinstance(data, tuple):
            if targets is not None:
                raise ConfigError("there are targets in the tuple, and others beside it: give one of them")
            data, targets, weights = parts_of(data, weights)
        found, streamed = None, cast("Any", data)
        if not split and (rows := rows_of(data, targets, weights, self.inputs[0].name)) is not None:
            streamed, targets, weights = rows, None, None
        if targets is None:
            found = batches_of(
                streamed,
                self.inputs[0].name,
                size,
                steps=steps,
                seed=self.seed,
                shuffle=shuffle,
                kind=kind_for(self.losses),
                prefetch=prefetch,
                workers=workers,
                rank=0 if self.group is None else self.group.rank,
                ranks=1 if self.group is None else self.group.size,
            )
        if found is not None:
            if weights is not None or split:
                raise ConfigError(
                    "samples that are read as they are needed bring their own weights, as (inputs, targets, "
                    "weights), and cannot be cut by validation_split: give validation_data"
                )
            ranks = 0 if self.group is None or self.group.rank > 0 else self.group.size
            if ranks and isinstance(found, StreamLoader) and (advice := found.advice(ranks)):
                warnings.warn(advice, stacklevel=3)
            return self._on_ranks(found), validation
        if steps is not None or workers:
            raise ConfigError(
                "steps_per_epoch and workers are for data that are not in memory: these have their own length"
            )
        held: Any = data
        dataset = as_dataset(held, targets, weights, self.inputs, self.losses)
        if split:
            if validation is not None:
                raise ConfigError("give validation data or validation_split, not both")
            dataset, validation = split_off(dataset, split)
        return Loader(dataset, size, self.seed, shuffle=shuffle), validation

    def _on_ranks(self, found: Batches) -> Batches:
        """The same, where ranks have agreed on it."""
        group = self.group
        if group is None or not isinstance(found, IterableBatches):
            return found
        if found.divided:
            if (found.rank, found.ranks) != (group.rank, group.size):
                raise ConfigError(
                    f"these are the batches of rank {found.rank} of {found.ranks}, on rank {group.rank} of "
                    f"{group.size}: give IterableBatches `rank` and `ranks`"
                )
            found.agree(group.gather)
        elif not found.in_memory and group.rank == 0:
            warnings.warn(
                f"each of {group.size} ranks goes through all batches of {found.name} and keeps its share; "
                "a function with parameters `rank` and `ranks` makes those of one rank, and spares that",
                stacklevel=4,
            )
        return found

    def measuring(
        self, data: Samples | Inputs, targets: Array | None, weights: Array | None, size: int
    ) -> Batches:
        """The loader of what is evaluated, in its own order."""
        return self.training(data, targets, weights, size, shuffle=False)[0]

    def validating(self, data: Samples, size: int) -> Batches:
        """The loader of what is evaluated after each epoch.

        Raises:
            ConfigError: it can be gone through only once.
        """
        if isinstance(data, Iterator):
            raise ConfigError(
                "a generator can be gone through once, and validation data are each epoch: give a function "
                "that makes a fresh generator, or a list of batches"
            )
        return self.measuring(data, None, None, size)
