"""Callbacks: what may happen around a run's steps and epochs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np

from onward.errors import ConfigError, StorageError
from onward.graph import Array
from onward.model.atomic import atomic_write

if TYPE_CHECKING:
    from onward.train.run import Run

__all__ = ["CSVLog", "Callback", "Checkpoints", "EarlyStopping", "EpochLines", "StopOnNaN", "TensorBoardLog"]


class Callback:
    """Hooks that a run calls; each does nothing unless a subclass says otherwise.

    `state` and `load_state` are for those that remember something: it becomes part of checkpoints under the
    class's name, so a run holds at most one of a class that has state.

    On several ranks each has its own callbacks, which have to decide alike: what `run` says is the same on
    all of them, but for metrics before an epoch's end. One whose `first_rank_only` is True, since it writes
    files or lines, is left out on the others.
    """

    first_rank_only: ClassVar[bool] = False

    def on_train_begin(self, run: Run) -> None:
        """Before the first step, also of a resumed run."""

    def on_step_end(self, run: Run) -> None:
        """After each step; `run.last` holds its figures."""

    def on_epoch_end(self, run: Run) -> None:
        """After an epoch and its validation; the history's last row is the epoch's."""

    def on_train_end(self, run: Run) -> None:
        """After the last epoch, or when the run was stopped; not after an error."""

    def state(self) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
        """What a checkpoint has to keep: plain data, and arrays."""
        return {}, {}

    def load_state(self, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Go on from what `state` gave."""


def _figure(run: Run, monitor: str) -> float:
    row = run.history.rows[-1]
    if monitor not in row:
        raise ConfigError(f"there is no figure {monitor!r} to watch; there are {', '.join(row)}")
    return row[monitor]


@final
class EarlyStopping(Callback):
    """Stops when a figure has not improved for some epochs, and restores the best epoch's weights.

    Counts as Keras does: with patience 1, and 0, the first epoch without improvement is the last, unless it
    is the run's first. NaN is no improvement, whatever came before, and is warned of; where no epoch had a
    number, nothing is restored. Epochs in which weights are still being pruned do not count.

    Args:
        monitor: the history's figure to watch.
        patience: epochs without improvement, one after the other, at which the run stops.
        mode: whether lower or higher is better; "auto": lower for names that end in loss, mae, mse or rmse.
        minimum_change: a smaller change is no improvement.
        restore_best: put the weights of the best epoch back at the end, also when the run was not stopped.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 0,
        mode: Literal["auto", "min", "max"] = "auto",
        minimum_change: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        if patience < 0:
            raise ConfigError(f"early stopping: patience must be at least 0, got {patience}")
        lower = monitor.endswith(("loss", "mae", "mse")) if mode == "auto" else mode == "min"
        self.monitor = monitor
        self._patience, self._change, self._restore = patience, minimum_change, restore_best
        self._sign = -1.0 if lower else 1.0
        self._forget()

    def _forget(self) -> None:
        self._best = -math.inf
        self._bad = 0
        self._best_state: dict[str, Array] = {}
        self.best_epoch = 0

    def on_train_begin(self, run: Run) -> None:
        if run.step == 0:
            self._forget()
        if self.monitor.startswith("val_") and run.validation is None:
            raise ConfigError(f"early stopping watches {self.monitor!r}, but there is no validation data")

    def on_epoch_end(self, run: Run) -> None:
        figure = self._sign * _figure(run, self.monitor)
        if not run.settled:
            return
        if math.isnan(figure):
            warnings.warn(
                f"{self.monitor} of epoch {len(run.history)} is NaN, which early stopping takes for no "
                "improvement",
                RuntimeWarning,
                stacklevel=2,
            )
        if figure > self._best + self._change or (not self.best_epoch and not math.isnan(figure)):
            self._best, self._bad, self.best_epoch = figure, 0, len(run.history)
            if self._restore:
                self._best_state = {name: a.copy() for name, a in run.session.state.items()}
            return
        self._bad += 1
        if self._bad >= self._patience and len(run.history) > 1:
            nan = " (NaN in the last)" if math.isnan(figure) else ""
            run.stop(
                f"{self.monitor} has not improved since epoch {self.best_epoch}{nan}"
                if self.best_epoch
                else f"{self.monitor} was NaN in each of the {len(run.history)} epochs"
            )

    def on_train_end(self, run: Run) -> None:
        if self._restore and self._best_state:
            run.session.load_state(self._best_state)

    def state(self) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
        return {"best": self._best, "bad": self._bad, "epoch": self.best_epoch}, self._best_state

    def load_state(self, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._best, self._bad, self.best_epoch = float(data["best"]), int(data["bad"]), int(data["epoch"])
        self._best_state = dict(arrays)


@final
class Checkpoints(Callback):
    """Writes a checkpoint after each epoch, or each so many steps.

    Args:
        path: the file; each write replaces it atomically.
        every: steps between writes; None: after each epoch.
        written: called after each write with the run.
    """

    def __init__(
        self, path: str | Path, every: int | None = None, written: Callable[[Run], None] | None = None
    ) -> None:
        if every is not None and every < 1:
            raise ConfigError(f"checkpoints: every must be at least 1 step, got {every}")
        self.path = Path(path)
        self._every = every
        self._written = written

    def on_step_end(self, run: Run) -> None:
        if self._every is not None and run.step % self._every == 0:
            self.write(run)

    def on_epoch_end(self, run: Run) -> None:
        if self._every is None:
            self.write(run)

    def write(self, run: Run) -> None:
        """Write a checkpoint now."""
        run.save(self.path)
        if self._written is not None:
            self._written(run)


@final
class EpochLines(Callback):
    """Prints one line an epoch, for where no progress bar is seen."""

    first_rank_only = True

    def on_epoch_end(self, run: Run) -> None:
        row = run.history.rows[-1]
        figures = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
        print(f"epoch {int(row['epoch'])}/{run.epochs}  {figures}", flush=True)


@final
class StopOnNaN(Callback):
    """Ends the run with an error as soon as the loss is NaN or infinite, which names the node that made it.

    The weights are then those from before the step that made it. The end of each epoch looks at the weights
    too: the last step of a run has no loss after it.
    """

    def on_step_end(self, run: Run) -> None:
        loss = run.last["loss"]
        if not math.isfinite(loss):
            run.refuse(f"the loss became {loss}")


@final
class CSVLog(Callback):
    """Keeps a CSV file of the history, rewritten after each epoch: a resumed run continues it."""

    first_rank_only = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_epoch_end(self, run: Run) -> None:
        with atomic_write(self.path) as file:
            file.write(run.history.to_csv().encode())


@final
class TensorBoardLog(Callback):
    """Writes figures as TensorBoard events: each epoch's row, and the loss of every `every` steps.

    Needs the extra `onward[tensorboard]`.
    """

    first_rank_only = True

    def __init__(self, folder: str | Path, every: int = 10) -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise ConfigError("the TensorBoard log needs the extra onward[tensorboard]") from None
        self._folder = Path(folder)
        self._open: Callable[[], Any] = partial(EventFileWriter, str(folder))
        self._writer: Any = None
        self._every = every

    def on_train_begin(self, run: Run) -> None:
        try:
            self._writer = self._open()
        except OSError as error:
            raise StorageError(
                f"{self._folder}: the TensorBoard log cannot be written there: {error.strerror}"
            ) from error

    def on_step_end(self, run: Run) -> None:
        if run.step % self._every == 0:
            self._add(
                {"step/loss": run.last["loss"], "step/learning_rate": run.last["learning_rate"]}, run.step
            )

    def on_epoch_end(self, run: Run) -> None:
        row = run.history.rows[-1]
        self._add(
            {f"epoch/{name}": value for name, value in row.items() if name != "epoch"}, len(run.history)
        )

    def on_train_end(self, run: Run) -> None:
        self._writer.close()

    def _add(self, figures: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=float(np.float32(v))) for tag, v in figures.items()]
        self._writer.add_event(Event(step=step, summary=Summary(value=values)))
