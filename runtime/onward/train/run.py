"""A run of training: where it stands, its one step, and how it is saved and taken up again."""

from __future__ import annotations

import contextlib
import copy
import math
import time
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, final

import numpy as np

from onward.autodiff import TrainingStep, UpdateCount
from onward.data import Batch, Batches
from onward.data.batches import Share
from onward.engine import StepSession
from onward.errors import ConfigError, TrainingError
from onward.graph import Array
from onward.parallel import Group
from onward.train.averaging import Averaging
from onward.train.callbacks import Callback
from onward.train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from onward.train.faults import Rewind, is_finite
from onward.train.history import History
from onward.train.means import MeanLoss
from onward.train.metrics import Metric
from onward.train.pruning import Pruning, prune
from onward.train.schedules import Progress, ReduceOnPlateau, Schedule

__all__ = ["Run"]

_PLACES = 200
"""Where the rates of two lengths of a run are compared."""
_ELSEWHERE = "another rank asked for it"
_NEAR = 1e-2
"""How far rounding may drive weights apart in an epoch, over the largest of them."""


@final
@dataclass
class Run:
    """The state of `Trainer.fit`, which callbacks see.

    Attributes:
        loader: the training data.
        validation: the validation data, if any.
        epochs: epochs of the whole run.
        feed: the step's arrays of a batch.
        session: holds parameters, optimizer state and running statistics.
        history: the epochs finished.
        epoch: the epoch under way, from 1; when an epoch has ended, the one to come.
        batch: batches of it that are done.
        step: steps done since the start of the run.
        updates: how many updates were made.
        samples: of the last step.
        last: figures of the last step: loss, learning_rate.
        mean: the loss of the epoch so far.
        stopped: why the run ends early; empty while it does not.
        halted: whether it ends before the next step, in the middle of an epoch.
        averaging: how weights are averaged; None: they are not.
        pruning: how weights are pruned; None: they are not.
        group: the ranks among which batches are divided; None: there is one.
        alike: whether all of them round alike.
        asked: whether this rank would like the run to end: see `stop`.
        agreed: whether some rank would: the same on all, after the step that follows.
        seconds: spent in training steps.
    """

    loader: Batches
    validation: Batches | None
    epochs: int
    feed: Callable[[Batch], Mapping[str, Array]]
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
    updates: UpdateCount = field(default_factory=UpdateCount)
    last: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    stopped: str = ""
    halted: bool = False
    averaging: Averaging | None = None
    pruning: Pruning | None = None
    group: Group | None = None
    alike: bool = True
    asked: bool = False
    agreed: bool = False
    seconds: float = 0.0
    _schedule_state: dict[str, float] = field(default_factory=dict)
    _rewind: Rewind = field(default_factory=Rewind)
    _unsound: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.mean = MeanLoss(self.layout.totals)

    def begin(self) -> None:
        """Note which weights are not finite before the first step: those the run is not to blame for."""
        self._unsound = frozenset(self.faulty())

    def stop(self, reason: str, *, now: bool = False) -> None:
        """End the run after this epoch, or `now`, after this step; the epoch is then not closed.

        Where there are several ranks, one that asks for it ends the run of all: `now` is then after the step
        that follows, in which they tell each other, unless this one told them.
        """
        self.stopped = reason
        if now and self.group is not None and not self.agreed:
            self.asked = True
        else:
            self.halted = now

    def agree_to_stop(self) -> None:
        """Let the run end where it ends on another rank; all ranks call this."""
        if self.group is not None and self.group.any(bool(self.stopped)):
            self.stopped = self.stopped or _ELSEWHERE

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        if self.averaging is not None:
            factor = self.averaging.learning_rate_at(self.epoch, self.epochs)
            if factor is not None:
                return self.base_rate * factor
        return self.base_rate * self.schedule.factor(self.progress(), self._schedule_state)

    def progress(self) -> Progress:
        """Where the run stands, by windows of batches: each epoch ends one."""
        windows = math.ceil(len(self.loader) / self.accumulate)
        own = (
            math.ceil(self.batch / self.accumulate)
            if self.batch == len(self.loader)
            else self.batch // self.accumulate
        )
        done = (self.epoch - 1) * windows + own
        return Progress(done, self.epochs * windows, self.epoch - 1, self.epochs)

    @property
    def settled(self) -> bool:
        """Whether weights are of the form that the run is to give: False while they are being pruned."""
        return self.pruning is None or self.pruning.reached(self.progress())

    def replace_state(self, state: Mapping[str, Array]) -> None:
        """Put other parameters, optimizer state and statistics in the place of the session's."""
        self.session.load_state(state)
        # steps before it can no longer be done again
        self._rewind = Rewind()

    def batches(self, epoch: int, position: int) -> Generator[Batch, None, None]:
        """This rank's shares of the batches of an epoch, which counts from 1, from a position on."""
        if self.group is None:
            return self.loader.epoch(epoch - 1, position)
        if self.loader.divided:
            return self._own_batches(self.group, epoch, position)
        return self.loader.shares(epoch - 1, position, self.group.rank, self.group.size)

    def _own_batches(self, group: Group, epoch: int, position: int) -> Generator[Batch, None, None]:
        """A rank's own batches as its shares: ranks tell each other how many samples they have of each."""
        spare = self.loader.sample
        batch = Batch(
            spare.inputs,
            spare.targets,
            np.zeros(len(spare), np.int64) if spare.rows is None else spare.rows,
            spare.weights,
        )
        with contextlib.closing(self.loader.epoch(epoch - 1, position)) as served:
            for _ in range(position, len(self.loader)):
                own = next(served, None)
                counts = np.zeros(group.size, np.int64)
                counts[group.rank] = 0 if own is None else len(own)
                counts = group.sum(counts)
                batch = batch.part(0, len(batch)) if own is None else own
                first = int(counts[: group.rank].sum())
                share = Share(first, int(counts[group.rank]), int(counts.sum()))
                yield replace(batch, share=share)

    def inputs(
        self, batch: Batch, position: int, step: int, rate: float, updates: UpdateCount
    ) -> tuple[dict[str, Array], bool]:
        """What the step takes, and whether it ends a window.

        Args:
            batch: the batch.
            position: its place in the epoch, from 0.
            step: the number of steps before it.
            rate: the learning rate.
            updates: the updates before it.
        """
        layout = self.layout
        inputs = {
            **self.feed(batch),
            layout.learning_rate: np.asarray(rate, np.float32),
            layout.step: np.asarray(step, np.int64),
        }
        if layout.seed is not None:
            inputs[layout.seed] = np.asarray(self.seed, np.int64)
        ends = (position + 1) % self.accumulate == 0 or position + 1 == len(self.loader)
        if layout.update is not None:
            inputs[layout.update] = updates.number(ends)
        if self.group is not None:
            share = batch.share
            first, count = (0, len(batch)) if share is None else (share.first, share.count)
            inputs[layout.ranks["samples"]] = np.asarray(count, np.float32)
            inputs[layout.ranks["signal"]] = np.asarray(self.asked, np.float32)
            if (name := layout.ranks.get("share")) is not None:
                inputs[name] = np.array([first, max(count, 1)], np.int64)
            self.group.exchanging = ends
        return inputs, ends

    def advance(self, batch: Batch) -> None:
        """Do one step."""
        rate = self.learning_rate()
        inputs, ends = self.inputs(batch, self.batch, self.step, rate, self.updates)
        self._rewind.keep(self, rate)
        before = time.perf_counter()
        results = self.session.run(inputs)
        self.seconds += time.perf_counter() - before
        self.step += 1
        self.samples = batch.whole
        self.batch += 1
        self.agreed = self.asked if self.group is None else bool(results[self.layout.ranks["signals"]] > 0)
        if self.agreed:
            self.stopped, self.halted = self.stopped or _ELSEWHERE, True
        self.updates.add(self.mean.add(results), ends)
        if self.pruning is not None and ends:
            prune(self, self.pruning)
        counts = batch.share is None or batch.share.count > 0
        if self.metrics and batch.targets is not None and counts:
            output = results[next(iter(self.layout.targets))]
            for metric in self.metrics:
                metric.update(output, batch.targets)
        self.last = {"loss": float(results[self.layout.loss]), "learning_rate": rate}

    def faulty(self, *, everywhere: bool = False) -> list[str]:
        """Weights and running statistics that hold NaN or infinities which they did not begin with.

        Args:
            everywhere: look at the optimizer's state and at accumulated gradients too.
        """
        state = self.session.state
        slots = self.layout.slots if everywhere else ()
        names = (*self.layout.parameters, *self.layout.statistics, *slots)
        return [name for name in names if name not in self._unsound and not is_finite(state[name])]

    def refuse(self, what: str) -> NoReturn:
        """End the run over a number that is not finite, with the weights from before the step that made it.

        Raises:
            TrainingError: names the node that made it.
        """
        where = f"in epoch {self.epoch}, step {self.step}"
        cause = self._rewind.explain(self)
        if self.group is not None:
            cause = _first_cause(self.group.gather(cause))
        raise TrainingError(
            f"{what} {where}; {cause + '; ' if cause else ''}lower the learning rate or clip the gradients, "
            "and check the data's scale"
        )

    def check_weights(self) -> None:
        """Refuse to go on with weights that are not finite.

        Raises:
            TrainingError: names the node that made them so.
        """
        if names := self.faulty():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.refuse(f"weight {names[0]!r}{more} became NaN or infinite")

    def figures(self) -> dict[str, float]:
        """Loss and scalar metrics of the epoch so far."""
        scalars = {m.name: m.result() for m in self.metrics}
        return {
            "loss": self.mean.value(),
            **{name: value for name, value in scalars.items() if isinstance(value, float)},
        }

    def close_epoch(self, validation: Mapping[str, float]) -> None:
        """Add the epoch to the history and tell the schedule and the callbacks."""
        if self.group is not None:
            for metric in self.metrics:
                metric.join(self.group)
            self.check_alike(self.group)
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
        self.mean.reset()
        for metric in self.metrics:
            metric.reset()
        for callback in self.callbacks:
            callback.on_epoch_end(self)

    def check_alike(self, group: Group) -> None:
        """Refuse to go on with weights that are not the same on all ranks.

        Where ranks do not round alike, those of rank 0 take the place of others that are near them.

        Raises:
            TrainingError: names the ranks that differ from the first.
        """
        own, common = 0, []
        for name, array in self.session.state.items():
            if name not in self.layout.accumulated and name not in self.layout.shards:
                own = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, own)
                common.append(name)
        sums = group.gather(own)
        others = [rank for rank, value in enumerate(sums) if value != sums[0]]
        if others and not self.alike:
            state, gaps = dict(self.session.state), [0.0]
            for name in common:
                first = np.array(state[name], order="C")
                group.share(first)
                gaps.append(_gap(state[name], first))
                state[name] = first
            others = [rank for rank, gap in enumerate(group.gather(max(gaps))) if gap > _NEAR]
            if not others:
                self.replace_state(state)
        if others:
            raise TrainingError(
                f"the weights of rank {others[0]} are no longer those of rank 0, after step {self.step}: "
                "the network or memory of one of them is faulty, or a callback changed weights on some ranks"
            )

    def checkpoint(self) -> Checkpoint:
        """The run as it stands: over all ranks, which all have to ask for it."""
        arrays: dict[str, Array] = {}
        state = dict(self.session.state)
        metrics = self.metrics
        if self.group is not None:
            metrics = copy.deepcopy(self.metrics)
            for metric in metrics:
                metric.join(self.group)
            for name in self.layout.accumulated:
                state[name] = self.group.sum(state[name]).astype(state[name].dtype)
            for name, (parameter, start, _) in self.layout.shards.items():
                like = state[parameter]
                state[name] = self.group.whole(state.get(name, like[:0]).reshape(-1), start, like.shape)
        for i, metric in enumerate(metrics):
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
            # a run that was cut off within an epoch is one to go on with
            "stopped": "" if self.halted else self.stopped,
            "schedule": self._schedule_state,
            "last": self.last,
            "epochs": self.epochs,
            "mean": self.mean.state(),
            "updates": [self.updates.done, self.updates.weight],
            "history": self.history.rows,
            "callbacks": memory,
            "beside": {
                "averages": dict(self.layout.averages),
                "averaged": self.layout.averaged,
                "masks": dict(self.layout.masks),
            },
        }
        return Checkpoint(dict(sorted(state.items())), arrays, meta)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint of the run as it stands.

        Raises:
            StorageError: the folder cannot be written to; an earlier checkpoint survives.
            TrainingError: a weight is not finite; an earlier checkpoint survives.
        """
        self.check_weights()
        checkpoint = self.checkpoint()
        if self.group is None:
            write_checkpoint(path, checkpoint)
        else:
            self.group.from_first(lambda: write_checkpoint(path, checkpoint))

    def _check_schedule(self, path: str | Path, meta: Mapping[str, Any]) -> None:
        """Refuse a schedule of other options, and one whose rates the number of epochs would change."""
        saved, epochs = meta["identity"].get("schedule"), int(meta["epochs"])
        own = repr(self.schedule.over(self.epochs))
        if saved == own and (epochs == self.epochs or self._same_rates(epochs, meta["schedule"])):
            return
        if saved not in (own, repr(self.schedule.over(epochs))):
            raise TrainingError(
                f"checkpoint {path} is of another run: its schedule is {saved!r}, this run's is {own!r}"
            )
        name = type(self.schedule).__name__
        way = (
            f"or give the schedule a length of its own: {name}(epochs={epochs}), on the command line "
            f"--schedule-epochs {epochs}, keeps these rates and then stays at its last"
            if hasattr(self.schedule, "epochs")
            else "or begin a new run from its weights"
        )
        raise TrainingError(
            f"checkpoint {path} is of a run of {epochs} epochs, and the schedule {name} depends on that "
            f"number: over {self.epochs} epochs the learning rates would be others. Resume with {epochs} "
            f"epochs, {way}"
        )

    def _same_rates(self, epochs: int, state: Mapping[str, float]) -> bool:
        """Whether the schedule's factors are those of a run of so many epochs, at places all along it."""
        windows = math.ceil(len(self.loader) / self.accumulate)
        both = min(epochs, self.epochs) * windows
        for done in range(0, both, max(1, both // _PLACES)):
            factors = {
                self.schedule.factor(Progress(done, n * windows, done // windows, n), dict(state))
                for n in (epochs, self.epochs)
            }
            if len(factors) > 1:
                return False
        return True

    def resume(self, path: str | Path) -> None:
        """Take up the run that a checkpoint holds.

        Raises:
            ConfigError: the data cannot be gone through again.
            StorageError: the file cannot be read.
            TrainingError: it is damaged, or it is of another run: model, data, optimizer, schedule, seed or
                batch size.
        """
        if not self.loader.repeatable:
            raise ConfigError(
                "a run on a generator cannot be resumed, since its batches cannot be gone through again; "
                "give a function that makes a fresh generator, such as fit(lambda: batches(path))"
            )
        group = self.group
        saved = read_checkpoint(path) if group is None else group.from_first(lambda: read_checkpoint(path))
        meta = saved.meta
        for key, value in self.identity.items():
            if key == "schedule":
                self._check_schedule(path, meta)
            elif meta["identity"].get(key) != value:
                raise TrainingError(
                    f"checkpoint {path} is of another run: its {key} is {meta['identity'].get(key)!r}, "
                    f"this run's is {value!r}"
                )
        state, first = dict(saved.state), group is None or group.rank == 0
        if not first:  # rank 0 takes what a window under way, and metrics, have added up
            state |= {name: np.zeros_like(state[name]) for name in self.layout.accumulated}
        for name, (_, begin, end) in self.layout.shards.items():
            whole = state.pop(name)
            if begin < end:
                state[name] = whole.reshape(-1)[begin:end]
        self.session.load_state(state)
        self.epoch, self.batch, self.step = int(meta["epoch"]), int(meta["batch"]), int(meta["step"])
        self.stopped = str(meta["stopped"])
        self._schedule_state = {k: float(v) for k, v in meta["schedule"].items()}
        self.last = {k: float(v) for k, v in meta["last"].items()}
        self.mean.load_state(meta["mean"])
        self.updates = UpdateCount(int(meta["updates"][0]), float(meta["updates"][1]))
        self.history = History.of(meta["history"])
        for i, metric in enumerate(self.metrics):
            if first and (kept := _below(f"metric/{i}/", saved.arrays)):
                metric.load_state(kept)
        for callback in self.callbacks:
            name = type(callback).__name__
            if name in meta["callbacks"]:
                callback.load_state(meta["callbacks"][name], _below(f"callback/{name}/", saved.arrays))


def _gap(array: Array, first: Array) -> float:
    """The largest difference of two arrays, over the largest number of the second."""
    if array.dtype.kind != "f":
        return 0.0 if np.array_equal(array, first) else math.inf
    largest = float(np.abs(first).max(initial=0.0)) or 1.0
    return float(np.abs(array.astype(np.float64) - first).max(initial=0.0)) / largest


def _first_cause(causes: Sequence[str]) -> str:
    """What the ranks found, of the first that has it from its own samples rather than from an exchange."""
    own = [(rank, cause) for rank, cause in enumerate(causes) if cause and "StartCall" not in cause]
    if not own:
        return next((cause for cause in causes if cause), "")
    return f"rank {own[0][0]}, {own[0][1]}"


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
