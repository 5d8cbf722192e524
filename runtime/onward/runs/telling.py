"""Between a training and whoever follows it: what happens is told, and that it has to stop is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import final

from onward.runs.events import CheckpointWritten, EpochEnded, Event, MetricsSoFar, StepEnded
from onward.train import Callback, Checkpoints
from onward.train.run import Run

__all__ = ["Bridge", "CancelToken", "Listener"]

_METRICS_SECONDS = 0.1

Listener = Callable[[Event], None]


@final
class CancelToken:
    """Asks a run to stop; may be used from any thread, and from a signal handler."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def cancel(self, reason: str = "cancelled") -> None:
        """Let the run stop after its present step."""
        self.reason = self.reason or reason
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was asked."""
        return self._event.is_set()


@final
class Bridge(Callback):
    """From callbacks of the trainer to events, and from the token to the trainer."""

    def __init__(self, tell: Listener, token: CancelToken) -> None:
        self._tell = tell
        self._token = token
        self.checkpoints: Checkpoints | None = None
        self.last_checkpoint: Path | None = None
        self.cancelled = False
        self._told = 0.0

    def on_step_end(self, run: Run) -> None:
        last, samples = run.last, run.samples
        self._tell(StepEnded(run.epoch, run.batch, run.step, samples, last["loss"], last["learning_rate"]))
        if (now := time.monotonic()) - self._told >= _METRICS_SECONDS:
            self._told = now
            self._tell(MetricsSoFar(run.epoch, run.step, run.figures()))
        run.asked |= self._token.cancelled
        if run.agreed or (run.asked and run.group is None):
            self._token.cancel("interrupted on another rank")
            self.cancelled = True
            if self.checkpoints is not None:
                self.checkpoints.write(run)
            run.stop(self._token.reason, now=True)

    def on_epoch_end(self, run: Run) -> None:
        row = run.history.rows[-1]
        self._tell(EpochEnded(int(row["epoch"]), run.epochs, dict(row)))

    def checkpoint_written(self, run: Run) -> None:
        """A checkpoint was written."""
        assert self.checkpoints is not None
        self.last_checkpoint = self.checkpoints.path
        self._tell(CheckpointWritten(self.checkpoints.path, run.step))
