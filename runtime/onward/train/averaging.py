"""Averages of weights over a run, which are what is evaluated and exported."""

from __future__ import annotations

import contextlib
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onward.data import Batches
from onward.engine import Session
from onward.errors import ConfigError
from onward.graph import Array, Builder
from onward.parallel import Group
from onward.passes.to_training import to_training
from onward.train._named import create

if TYPE_CHECKING:
    from onward.train.run import Run

__all__ = ["EMA", "SWA", "Averaging", "BatchStatistics", "averaging_named"]


@dataclass(frozen=True, kw_only=True)
class Averaging(ABC):
    """What every average has: the weights that are evaluated, exported and predicted with are the average.

    Training goes on from the weights themselves; checkpoints hold both.
    """

    @abstractmethod
    def share(self, g: Builder, count: ir.Value) -> ir.Value | None:
        """Write the share of new weights in the average: see `onward.autodiff.Average`."""

    def over(self, epochs: int) -> Averaging:
        """The same average, with what depends on a run's length written down."""
        return self

    def learning_rate_at(self, epoch: int, epochs: int) -> float | None:
        """The factor of the learning rate in an epoch, from 1; None: the schedule's."""
        return None

    def takes(self, epoch: int, epochs: int) -> bool:
        """Whether the weights at the end of an epoch, from 1, go into the average there."""
        return False


@final
@dataclass(frozen=True, kw_only=True)
class EMA(Averaging):
    """Exponential moving average: a <- d a + (1 - d) w at each update, of running statistics too.

    The first update's weights begin it, as in Keras and torch.

    Attributes:
        decay: d, in [0, 1).
        warmup: make the decay of the n-th average after the first at most n / (n + 9), so that early weights
            are soon forgotten. Source: TensorFlow's ExponentialMovingAverage, argument num_updates.
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.decay, numbers.Real) or not 0 <= float(self.decay) < 1:
            raise ConfigError(f"EMA: decay must be in [0, 1), got {self.decay!r}")

    def share(self, g: Builder, count: ir.Value) -> ir.Value:
        if self.warmup:
            return g.Max(g.Div(9.0, g.Add(count, 9.0)), 1.0 - self.decay)
        return g.Where(g.Equal(count, 0.0), 1.0, 1.0 - self.decay)


@final
@dataclass(frozen=True, kw_only=True)
class SWA(Averaging):
    """Stochastic weight averaging: the mean of the weights at the ends of epochs from `start` on.

    Running statistics of batch normalization are measured anew for the average, by a pass over the training
    data at the end of each such epoch. Source: P. Izmailov et al., "Averaging weights leads to wider optima
    and better generalization", UAI 2018.

    Attributes:
        start: the first epoch whose weights are averaged, from 1; below 1 the share of the run's epochs that
            pass before.
        learning_rate: the factor of the base learning rate from that epoch on, in place of the schedule's,
            since the average of weights that move no more is nothing new; None: the schedule's.
    """

    start: float = 0.75
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.start, numbers.Real) or not (
            0 <= float(self.start) < 1 or float(self.start) == int(self.start) >= 1
        ):
            raise ConfigError(f"SWA: start must be an epoch or a share of them below 1, got {self.start!r}")
        if self.learning_rate is not None and not self.learning_rate >= 0:
            raise ConfigError(f"SWA: learning_rate must be at least 0, got {self.learning_rate!r}")

    def share(self, g: Builder, count: ir.Value) -> None:
        return None

    def first(self, epochs: int) -> int:
        """The first epoch that is averaged, from 1."""
        first = math.floor(self.start * epochs) + 1 if self.start < 1 else int(self.start)
        if first > epochs:
            raise ConfigError(
                f"SWA: weights are averaged from epoch {first} on, but the run has {epochs}; lower start"
            )
        return first

    def over(self, epochs: int) -> Averaging:
        return replace(self, start=self.first(epochs))

    def learning_rate_at(self, epoch: int, epochs: int) -> float | None:
        return self.learning_rate if self.takes(epoch, epochs) else None

    def takes(self, epoch: int, epochs: int) -> bool:
        return epoch >= self.first(epochs)


_NAMES: dict[str, type[Averaging]] = {"ema": EMA, "swa": SWA}


def averaging_named(name: str, **options: Any) -> Averaging:
    """An average by its name in configuration files.

    Raises:
        ConfigError: an unknown name or option.
    """
    return create("averaging", _NAMES, name, options)


@final
class BatchStatistics:
    """Measures the running statistics of batch normalization for weights that no batch has seen.

    Mean and variance are those of the whole data where each batch is normalised by itself; units are not
    dropped.

    Args:
        model: in inference form.
        trainable: names of its parameters: batch normalization with a trained scale or bias is measured.
        options: of the session.
    """

    def __init__(self, model: ir.Model, trainable: Collection[str], **options: Any) -> None:
        form = to_training(model, trainable, drop=False)
        graph = form.model.graph
        g = Builder(graph)
        graph.outputs.clear()
        depth: dict[ir.Value | None, int] = {}
        self._pairs: list[tuple[str, str]] = []
        self._outputs: dict[str, str] = {}
        for node in graph:
            if node.op_type != "BatchNormalization" or not node.attributes.get_int("training_mode", 0):
                continue
            # statistics that k nodes have in common: the mean of theirs
            before = depth.get(node.inputs[3], 0)
            node.attributes["momentum"] = ir.AttrFloat32("momentum", before / (before + 1))
            depth[node.outputs[1]] = before + 1
        names = {value: name for name, value in form.statistics.items()}
        for node in graph:
            if len(node.outputs) == 3 and node.outputs[1] in names and node.outputs[2] in names:
                self._pairs.append((names[node.outputs[1]], names[node.outputs[2]]))
        for name, value in form.statistics.items():
            self._outputs[name] = g.output(value, g.unique(f"{name}.of_batch")).name or ""
        RemoveUnusedNodesPass()(form.model)
        self._session = Session(form.model, **options)
        self._held = tuple(graph.initializers)
        self.inputs = tuple(spec.name for spec in self._session.inputs)

    def measure(
        self, weights: Mapping[str, Array], loader: Batches, feed: Any, group: Group | None
    ) -> dict[str, Array]:
        """The statistics of these weights over the loader's first epoch, by name.

        Args:
            weights: parameters and, for what is not measured, statistics.
            loader: the training data.
            feed: gives the arrays of a batch by input name.
            group: the ranks, which take batches in turn.
        """
        self._session.load_weights({name: weights[name] for name in self._held if name in weights}, copy=True)
        sums = {name: np.zeros(weights[name].shape, np.float64) for name in self._outputs}
        count = np.zeros(1)
        dealt = loader.epoch(0) if group is None else loader.dealt(group.rank, group.size)
        with contextlib.closing(dealt) as batches:
            for batch in batches:
                arrays = feed(batch)
                found = self._session.run({name: arrays[name] for name in self.inputs})
                size = len(batch)
                count += size
                for mean, variance in self._pairs:
                    m = found[self._outputs[mean]].astype(np.float64)
                    sums[mean] += size * m
                    sums[variance] += size * (found[self._outputs[variance]] + m * m)
        if group is not None:
            sums = {name: group.sum(total) for name, total in sums.items()}
            count = group.sum(count)
        measured: dict[str, Array] = {}
        for mean, variance in self._pairs:
            m = sums[mean] / count
            measured[mean] = m.astype(weights[mean].dtype)
            spread = np.maximum(sums[variance] / count - m * m, 0.0)
            measured[variance] = spread.astype(weights[variance].dtype)
        return measured


def end_epoch(run: Run, statistics: BatchStatistics | None) -> None:
    """Take the weights at the end of an epoch into the average, where they belong to it."""
    rule, layout = run.averaging, run.layout
    if rule is None or layout.averaged is None or not rule.takes(run.epoch, run.epochs):
        return
    state = dict(run.session.state)
    count = float(state[layout.averaged])
    changed: dict[str, Array] = {layout.averaged: np.asarray(count + 1, np.float32)}
    for name, held in layout.averages.items():
        mean = state[held].astype(np.float64)
        mean += (state[name] - mean) / (count + 1)
        changed[held] = mean.astype(state[held].dtype)
    if statistics is not None:
        weights = {name: changed[held] for name, held in layout.averages.items()}
        found = statistics.measure(weights, run.loader, run.feed, run.group)
        changed |= {layout.averages[name]: array for name, array in found.items()}
    run.replace_state({**state, **changed})
