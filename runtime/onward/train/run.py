"""A run of training: where it stands, its one step, and how it is saved and taken up again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from onward.autodiff import TrainingStep
from onward.data import Batch, Loader
from onward.engine import StepSession
from onward.errors import TrainingError
from onward.graph import Array
from onward.train.callbacks import Callback
from onward.train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from onward.train.history import History
from onward.train.metrics import Metric
from onward.train.schedules import Progress, ReduceOnPlateau, Schedule

__all__ = ["Run"]


@final
@dataclass
class Run:
    """The state of `Trainer.fit`, which callbacks see.

    Attributes:
        loader: the training data.
        validation: the validation data, if any.
        epochs: epochs of the whole run.
        session: holds parameters, optimizer state and running statistics.
        history: the epochs finished.
        epoch: the epoch under way, from 1; when an epoch has ended, the one to come.
        batch: batches of it that are done.
        step: steps done since the start of the run.
        last: figures of the last step: loss, learning_rate.
        stopped: why the run ends early; empty while it does not.
        halted: whether it ends before the next step, in the middle of an epoch.
    """

    loader: Loader
    validation: Loader | None
    epochs: int
    session: StepSession
    layout: TrainingStep
    metrics: Sequence[Metric]
    callbacks: Sequence[Callback]
    schedule: Schedule
    base_rate: float
    accumulate: int
    seed: int
    identity: Mapping[str, Any]
    history: History = field(default_factory=History)
    epoch: int = 1
    batch: int = 0
    step: int = 0
    last: dict[str, float] = field(default_factory=dict)
    stopped: str = ""
    halted: bool = False
    _schedule_state: dict[str, float] = field(default_factory=dict)
    _loss_sum: float = 0.0
    _samples: int = 0

    def stop(self, reason: str, *, now: bool = False) -> None:
        """End the run after this epoch, or `now`, after this step; the epoch is then not closed."""
        self.stopped = reason
        self.halted = now

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        updates = self.epochs * len(self.loader) // self.accumulate
        at = Progress(self.step // self.accumulate, updates, self.epoch - 1)
        return self.base_rate * self.schedule.factor(at, self._schedule_state)

    def advance(self, feeds: Mapping[str, Array], batch: Batch) -> None:
        """Do one step."""
        rate = self.learning_rate()
        inputs = {
            **feeds,
            self.layout.learning_rate: np.asarray(rate, np.float32),
            self.layout.step: np.asarray(self.step, np.int64),
        }
        if self.layout.seed is not None:
            inputs[self.layout.seed] = np.asarray(self.seed, np.int64)
        results = self.session.run(inputs)
        loss = float(results[self.layout.loss])
        self.step += 1
        self.batch += 1
        self._loss_sum += loss * len(batch)
        self._samples += len(batch)
        if self.metrics and batch.targets is not None:
            output = results[next(iter(self.layout.targets))]
            for metric in self.metrics:
                metric.update(output, batch.targets)
        self.last = {"loss": loss, "learning_rate": rate}

    def figures(self) -> dict[str, float]:
        """Loss and scalar metrics of the epoch so far."""
        scalars = {m.name: m.result() for m in self.metrics}
        return {
            "loss": self._loss_sum / max(1, self._samples),
            **{name: value for name, value in scalars.items() if isinstance(value, float)},
        }

    def close_epoch(self, validation: Mapping[str, float]) -> None:
        """Add the epoch to the history and tell the schedule and the callbacks."""
        row = {
            "epoch": self.epoch,
            "learning_rate": self.last["learning_rate"],
            **self.figures(),
            **validation,
        }
        self.history.rows.append(row)
        if isinstance(self.schedule, ReduceOnPlateau):
            self.schedule.observe(row.get("val_loss", row["loss"]), self._schedule_state)
        # a checkpoint written by a callback stands at the start of the next epoch
        self.epoch, self.batch = self.epoch + 1, 0
        self._loss_sum, self._samples = 0.0, 0
        for metric in self.metrics:
            metric.reset()
        for callback in self.callbacks:
            callback.on_epoch_end(self)

    def checkpoint(self) -> Checkpoint:
        """The run as it stands."""
        arrays: dict[str, Array] = {}
        for i, metric in enumerate(self.metrics):
            arrays |= {f"metric/{i}/{key}": a for key, a in metric.state().items()}
        memory: dict[str, Any] = {}
        for callback in self.callbacks:
            name = type(callback).__name__
            data, kept = callback.state()
            if data or kept:
                memory[name] = dict(data)
                arrays |= {f"callback/{name}/{key}": a for key, a in kept.items()}
        meta = {
            "identity": dict(self.identity),
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "stopped": self.stopped,
            "schedule": self._schedule_state,
            "last": self.last,
            "loss_sum": self._loss_sum,
            "samples": self._samples,
            "history": self.history.rows,
            "callbacks": memory,
        }
        return Checkpoint(dict(self.session.state), arrays, meta)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint of the run as it stands.

        Raises:
            StorageError: the folder cannot be written to; an earlier checkpoint survives.
        """
        write_checkpoint(path, self.checkpoint())

    def resume(self, path: str | Path) -> None:
        """Take up the run that a checkpoint holds.

        Raises:
            StorageError: the file cannot be read.
            TrainingError: it is damaged, or it is of another run: model, data, optimizer, seed or batch size.
        """
        saved = read_checkpoint(path)
        meta = saved.meta
        for key, value in self.identity.items():
            if meta["identity"].get(key) != value:
                raise TrainingError(
                    f"checkpoint {path} is of another run: its {key} is {meta['identity'].get(key)!r}, "
                    f"this run's is {value!r}"
                )
        self.session.load_state(saved.state)
        self.epoch, self.batch, self.step = int(meta["epoch"]), int(meta["batch"]), int(meta["step"])
        self.stopped = str(meta["stopped"])
        self._schedule_state = {k: float(v) for k, v in meta["schedule"].items()}
        self.last = {k: float(v) for k, v in meta["last"].items()}
        self._loss_sum, self._samples = float(meta["loss_sum"]), int(meta["samples"])
        self.history = History.of(meta["history"])
        for i, metric in enumerate(self.metrics):
            if state := _below(f"metric/{i}/", saved.arrays):
                metric.load_state(state)
        for callback in self.callbacks:
            name = type(callback).__name__
            if name in meta["callbacks"]:
                callback.load_state(meta["callbacks"][name], _below(f"callback/{name}/", saved.arrays))


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
