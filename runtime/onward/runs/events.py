"""What happens in a run, as values: `execute` gives them to whoever listens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, final

from onward.parallel import Times
from onward.runs.measures import Measures
from onward.verify import Report

__all__ = [
    "CheckpointWritten",
    "ColumnsPrepared",
    "DataRead",
    "EpochEnded",
    "Event",
    "Exported",
    "Finished",
    "FoldMeasured",
    "Measured",
    "MetricsSoFar",
    "Pruned",
    "RanksTimed",
    "Started",
    "StepEnded",
    "Warned",
]


@final
@dataclass(frozen=True)
class DataRead:
    """The data are read and divided.

    Attributes:
        spec: what was read.
        train, validation, test: samples of each part; 0 where there is none.
        inputs: element type and extents of a sample by input name, as read.
        notes: what the reader did that its user should know, such as rows left out.
    """

    spec: str
    train: int
    validation: int
    test: int
    inputs: Mapping[str, str]
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class ColumnsPrepared:
    """A table's columns were measured on the training part.

    Attributes:
        rows: for each column its name, what it is, and what is done to it.
        features: how many numbers the network takes of a row.
    """

    rows: tuple[tuple[str, str, str], ...]
    features: int


@final
@dataclass(frozen=True)
class FoldMeasured:
    """A network was trained on all folds but one, and measured on that one.

    Attributes:
        number, count: which of how many, from 1.
        figures: on that fold.
    """

    number: int
    count: int
    figures: Mapping[str, float]


@final
@dataclass(frozen=True)
class Started:
    """The first step is about to be done.

    Attributes:
        model: the network's name or the file.
        weights: how many numbers are trained or are running statistics.
        task: one line: what the targets are, loss, metrics.
        head: what became of the file's last layer; empty where nothing did.
        epochs, batches: of the run, and of an epoch.
        output: the file that will be written.
        resumed: the checkpoint that the run goes on from, if any.
        half_types: the 16-bit types of the file's tensors, which are trained in float32 and written as they
            were; empty where there are none.
    """

    model: str
    weights: int
    task: str
    head: str
    epochs: int
    batches: int
    output: Path
    resumed: Path | None = None
    half_types: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class StepEnded:
    """A step was done.

    Attributes:
        epoch: from 1.
        batch: of the epoch, from 1.
        step: of the run, from 1.
        samples: of the batch.
        loss, learning_rate: of the step.
    """

    epoch: int
    batch: int
    step: int
    samples: int
    loss: float
    learning_rate: float


@final
@dataclass(frozen=True)
class MetricsSoFar:
    """Loss and metrics of the epoch so far; at most ten times a second."""

    epoch: int
    step: int
    figures: Mapping[str, float]


@final
@dataclass(frozen=True)
class EpochEnded:
    """An epoch and its validation are done; `row` is its row in the history."""

    epoch: int
    epochs: int
    row: Mapping[str, float]


@final
@dataclass(frozen=True)
class CheckpointWritten:
    """A checkpoint stands in `path`: the run up to `step`."""

    path: Path
    step: int


@final
@dataclass(frozen=True, eq=False)
class Measured:
    """The trained model's figures on a part that training never saw."""

    part: Literal["test", "validation"]
    measures: Measures


@final
@dataclass(frozen=True)
class Pruned:
    """How sparse the trained weights are.

    Attributes:
        zeros: elements that are 0.
        weights: elements of all weights that are pruned.
        shares: of zeros, by weight.
    """

    zeros: int
    weights: int
    shares: Mapping[str, float]


@final
@dataclass(frozen=True, eq=False)
class Exported:
    """The model's file is written, once onnxruntime agreed with it.

    Attributes:
        path: the file.
        report: of the comparison.
        takes: each input as the graph takes it, such as `input uint8 [N, 1, 28, 28]`.
        notes: what one has to know to feed it.
    """

    path: Path
    report: Report
    takes: tuple[str, ...]
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class RanksTimed:
    """Training on several ranks is over: where the time of each went."""

    ranks: tuple[Times, ...]


@final
@dataclass(frozen=True)
class Warned:
    """Something that may not be meant."""

    text: str


@final
@dataclass(frozen=True)
class Finished:
    """The run is over; nothing comes after this.

    Attributes:
        status: "completed": all epochs. "stopped": early, as a callback asked. "cancelled": by its token,
            after a step; nothing is exported.
        reason: why it stopped; empty for "completed".
        output: the model's file; None where none was written.
        checkpoint: the last checkpoint, to go on from.
    """

    status: Literal["completed", "stopped", "cancelled"]
    reason: str
    output: Path | None
    checkpoint: Path | None


Event: TypeAlias = (
    DataRead
    | ColumnsPrepared
    | FoldMeasured
    | Started
    | StepEnded
    | MetricsSoFar
    | EpochEnded
    | CheckpointWritten
    | Measured
    | Pruned
    | Exported
    | RanksTimed
    | Warned
    | Finished
)
"""Any event of a run: what `events` is called with."""
