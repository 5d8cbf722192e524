"""A run's events, recorded by the trackers that its configuration names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onward.runs.config import RunConfig
from onward.runs.events import EpochEnded, Event, Exported, Finished, Measured, Started
from onward.train.trackers import CSVTracker, MLflowTracker, Tracker

__all__ = ["flat", "tracked", "trackers_of"]

Listener = Callable[[Event], None]


def trackers_of(config: RunConfig) -> list[Tracker]:
    """The trackers of a configuration.

    Raises:
        ConfigError: one is not installed.
    """
    found: list[Tracker] = []
    if config.log.track is not None:
        found.append(CSVTracker(config.log.track))
    if config.log.mlflow is not None:
        found.append(MLflowTracker(config.log.mlflow, config.log.experiment))
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


@contextlib.contextmanager
def tracked(config: RunConfig, tell: Listener) -> Iterator[Listener]:
    """A listener that passes events on and records them; a run that ends in an error is closed as failed."""
    trackers = trackers_of(config)
    started: list[Tracker] = []
    epochs = 0

    def listen(event: Event) -> None:
        nonlocal epochs
        tell(event)
        match event:
            case Started():
                output = event.output
                name = output.parent.name if output.stem == "model" else output.stem
                record = {key: value for key, value in config.plain().items() if key != "log"}
                for each in trackers:
                    each.start(name, {**flat(record), "weights": event.weights})
                    started.append(each)
            case EpochEnded():
                epochs = event.epoch
                figures = {name: value for name, value in event.row.items() if name != "epoch"}
                for each in started:
                    each.log(figures, event.epoch)
            case Measured():
                for each in started:
                    each.log({f"{event.part}_{k}": v for k, v in event.measures.figures.items()}, epochs)
            case Exported():
                beside = [event.path.with_suffix(".onnx_adapter"), event.path.with_name("history.csv")]
                files = [path for path in beside if path.exists()] if config.output is None else beside[:1]
                for each in started:
                    each.model(event.path)
                    _record(each, files)
            case Finished():
                while started:
                    started.pop().end(event.status)

    try:
        yield listen
    except BaseException as error:
        for each in started:
            with contextlib.suppress(Exception):
                each.end("cancelled" if isinstance(error, KeyboardInterrupt) else "failed")
        raise


def _record(tracker: Tracker, files: list[Path]) -> None:
    for path in files:
        if path.exists():
            tracker.artifact(path)
