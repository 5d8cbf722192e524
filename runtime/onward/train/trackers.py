"""Where runs are recorded: one protocol, and CSV files and MLflow behind it."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, final

from onward.errors import ConfigError, StorageError
from onward.model.atomic import atomic_write
from onward.train.callbacks import Callback

if TYPE_CHECKING:
    from onward.train.run import Run

__all__ = ["CSVTracker", "MLflowTracker", "Status", "Tracker", "Tracking"]

Status: TypeAlias = Literal["completed", "stopped", "cancelled", "failed"]
"""How a run ended."""

_LONGEST = 500
"""Characters of a parameter, of which MLflow takes 6,000 and older servers 500."""


class Tracker(Protocol):
    """Records one run at a time; an object with these methods is a tracker, whatever it writes to."""

    def start(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Begin a run.

        Args:
            name: for people.
            parameters: what was asked for, by dotted key.
        """

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Record figures after an epoch, which `step` counts from 1."""

    def artifact(self, path: Path) -> None:
        """Record a file."""

    def model(self, path: Path) -> None:
        """Record the run's model, an .onnx file."""

    def end(self, status: Status) -> None:
        """Close the run."""


@final
class Tracking(Callback):
    """Records a `Trainer.fit` with a tracker.

    As a context manager it also closes runs that end in an error:

        with train.Tracking(train.CSVTracker("tracked"), "first try", {"hidden": 32}) as tracking:
            trainer.fit(x, y, callbacks=[tracking])

    Args:
        tracker: records.
        name: of the run.
        parameters: what to record beside optimizer, batch size, epochs and seed.
    """

    first_rank_only: ClassVar[bool] = True

    def __init__(
        self, tracker: Tracker, name: str = "run", parameters: Mapping[str, Any] | None = None
    ) -> None:
        self._tracker = tracker
        self._name, self._parameters = name, dict(parameters or {})
        self._open = False

    def on_train_begin(self, run: Run) -> None:
        known = {
            key.replace(" ", "_"): run.identity[key]
            for key in ("optimizer", "schedule", "batch size", "seed")
            if key in run.identity
        }
        self._tracker.start(self._name, {"epochs": run.epochs, **known, **self._parameters})
        self._open = True

    def on_epoch_end(self, run: Run) -> None:
        row = dict(run.history.rows[-1])
        self._tracker.log(row, int(row.pop("epoch")))

    def on_train_end(self, run: Run) -> None:
        self._end("cancelled" if run.halted else "stopped" if run.stopped else "completed")

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end("cancelled" if kind is KeyboardInterrupt else "failed")

    def _end(self, status: Status) -> None:
        if self._open:
            self._open = False
            self._tracker.end(status)


@final
class CSVTracker:
    """Keeps each run in a folder of its own below `folder`: parameters, figures, files, and how it ended.

    NAME-1, NAME-2, … hold `parameters.json`, `figures.csv`, `status.txt` and the files that were recorded.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.run: Path = self.folder
        self._rows: list[dict[str, float]] = []

    def start(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Make the run's folder."""
        plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "run"
        self._rows = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                self.run = self.folder / f"{plain}-{number}"
                try:
                    self.run.mkdir()
                    break
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise StorageError(f"folder {self.folder} cannot be made: {error.strerror}") from None
        self._write("parameters.json", json.dumps(dict(parameters), indent=2, default=str) + "\n")
        self._write("status.txt", "running\n")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write all figures so far."""
        self._rows.append({"epoch": step, **figures})
        names = dict.fromkeys(name for row in self._rows for name in row)
        with atomic_write(self.run / "figures.csv") as file:
            lines = _Lines(file)
            writer = csv.DictWriter(lines, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)

    def artifact(self, path: Path) -> None:
        """Copy a file into the run's folder."""
        target = self.run / path.name
        if path.resolve() != target.resolve():
            shutil.copy2(path, target)

    def model(self, path: Path) -> None:
        """Copy the model into the run's folder."""
        self.artifact(path)

    def end(self, status: Status) -> None:
        """Say how the run ended."""
        self._write("status.txt", f"{status}\n")

    def _write(self, name: str, text: str) -> None:
        with atomic_write(self.run / name) as file:
            file.write(text.encode())


@final
class _Lines:
    """Text into a file of bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, text: str) -> None:
        """Write a line."""
        self._file.write(text.encode())


@final
class MLflowTracker:
    """Records runs in MLflow, the model in its `mlflow.onnx` flavour; needs `onward[mlflow]`.

    Args:
        uri: of the store, such as `sqlite:///mlflow.db` or a server's address; None: as MLflow is set up.
        experiment: to which runs belong.
    """

    _STATUS: ClassVar[Mapping[Status, str]] = {
        "completed": "FINISHED",
        "stopped": "FINISHED",
        "cancelled": "KILLED",
        "failed": "FAILED",
    }

    def __init__(self, uri: str | None = None, experiment: str = "onward") -> None:
        self._mlflow = _needed("mlflow", "the MLflow tracker", "mlflow")
        self._uri, self._experiment = uri, experiment
        self._restore: Callable[[], None] = _nothing
        self.run_id = ""

    def start(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Begin a run and record its parameters."""
        mlflow = self._mlflow
        before = mlflow.get_tracking_uri()
        if self._uri is not None:
            mlflow.set_tracking_uri(self._uri)
            self._restore = lambda: mlflow.set_tracking_uri(before)
        try:
            mlflow.set_experiment(self._experiment)
            self.run_id = mlflow.start_run(run_name=name).info.run_id
        except Exception as error:
            self._restore()
            raise StorageError(f"MLflow at {self._uri or before}: {_first_line(error)}") from error
        mlflow.log_params({key: str(value)[:_LONGEST] for key, value in parameters.items()})

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Record figures."""
        self._mlflow.log_metrics(dict(figures), step=step)

    def artifact(self, path: Path) -> None:
        """Record a file."""
        self._mlflow.log_artifact(str(path))

    def model(self, path: Path) -> None:
        """Record the model in the `mlflow.onnx` flavour."""
        import onnx
        from mlflow import onnx as flavour

        packages = ["onnx", "onnxruntime"]
        flavour.log_model(onnx.load(path), name="model", pip_requirements=packages)

    def end(self, status: Status) -> None:
        """Close the run."""
        self._mlflow.end_run(self._STATUS[status])
        self._restore()


def _needed(module: str, what: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"{what} needs the extra onward[{extra}]: pip install 'onward[{extra}]'") from None


def _nothing() -> None:
    """There is nothing to put back."""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
