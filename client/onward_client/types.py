"""What the client returns besides arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import numpy as np

__all__ = [
    "Array",
    "BatchStatistics",
    "CrossCheckStatistics",
    "InferResult",
    "ModelConfig",
    "ModelLineage",
    "ModelMetadata",
    "ModelParameters",
    "ModelStatistics",
    "ParameterValue",
    "RepositoryEntry",
    "ServerMetadata",
    "TensorMetadata",
    "TrainingEvaluation",
    "TrainingEvent",
    "TrainingJob",
]

Array: TypeAlias = np.ndarray[Any, Any]
ParameterValue: TypeAlias = bool | int | float | str


@final
@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """A model's input or output: name, protocol datatype (`FP32`), shape with -1 where it varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model's versions, inputs and outputs."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@final
@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How a model is served.

    Attributes:
        max_batch_size: rows that are computed together at most; 0: requests are not joined.
        parameters: from an Onward server the engine and the cross-check's settings.
        preferred_batch_sizes: rows that wait for no more.
        max_queue_delay: seconds that a request waits for others at most.
        instances: how many copies run at once at most.
        versions: those that take requests, where the server says which.
    """

    name: str
    platform: str
    backend: str
    max_batch_size: int
    parameters: Mapping[str, str]
    preferred_batch_sizes: tuple[int, ...]
    max_queue_delay: float
    instances: int
    versions: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """The server's name, version and protocol extensions."""

    name: str
    version: str
    extensions: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Runs with one number of rows: how many, and their total times in seconds."""

    rows: int
    count: int
    input_seconds: float
    compute_seconds: float
    output_seconds: float


@final
@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Counts of requests since the server started and their total times in seconds.

    Attributes:
        queue_seconds, input_seconds, compute_seconds, output_seconds: parts of `success_seconds`.
        inference_count: rows computed; a batch of n is n.
        execution_count: runs.
        last_inference: when the latest request was answered, in seconds since 1970; 0: there was none.
        cache_hits, cache_misses: of the response cache, and the seconds that looking there took.
        batches: runs by their number of rows.
    """

    name: str
    version: str
    success_count: int
    success_seconds: float
    fail_count: int
    fail_seconds: float
    queue_seconds: float
    compute_seconds: float
    input_seconds: float
    output_seconds: float
    inference_count: int
    execution_count: int
    last_inference: float
    cache_hits: int
    cache_hit_seconds: float
    cache_misses: int
    cache_miss_seconds: float
    batches: tuple[BatchStatistics, ...]


@final
@dataclass(frozen=True, slots=True)
class RepositoryEntry:
    """A version in a server's repository: its state (`READY` or `UNAVAILABLE`), and why it is not ready."""

    name: str
    version: str
    state: str
    reason: str


@final
@dataclass(frozen=True, slots=True)
class CrossCheckStatistics:
    """What the cross-checks of one version of a model found since the server started.

    Attributes:
        policy: off, sample, every or shadow.
        on_mismatch: log, fail or prefer-onnxruntime.
        requests: requests computed.
        checks: requests that both engines computed; passed + failed.
        skipped: requests that the policy did not select, or that the witness could not compute within its
            limits.
        dropped: shadow checks that were given up.
        max_absolute_error: largest difference between finite elements.
        max_relative_error: largest difference relative to onnxruntime's element.
        last_mismatch: text of the latest mismatch, empty when there was none.
        unchecked: how many of those skipped the witness could not compute within its limits.
        first_difference: where the engines parted when a mismatch was computed again node by node; empty: it
            was not, or they agreed.
        last_unchecked: why the witness could not compute the latest of those that are unchecked.
    """

    model: str
    version: str
    policy: str
    on_mismatch: str
    requests: int
    checks: int
    passed: int
    failed: int
    skipped: int
    dropped: int
    max_absolute_error: float
    max_relative_error: float
    last_mismatch: str
    unchecked: int = 0
    first_difference: str = ""
    last_unchecked: str = ""


@final
@dataclass(frozen=True, slots=True)
class InferResult:
    """The whole answer to a request.

    Attributes:
        outputs: arrays by name, in the order of the request or the model.
        model: the model that answered.
        version: its version.
        id: the id that the request was given.
        parameters: of the answer; an Onward server tells `cross_check` (passed, failed, skipped or shadow)
            and `engine` (onward or onnxruntime).
    """

    outputs: dict[str, Array]
    model: str
    version: str
    id: str
    parameters: Mapping[str, ParameterValue]


@final
@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A training job.

    Attributes:
        id: what calls name it by.
        state: `queued`, `running`, `completed`, `cancelled` or `failed`.
        title: the text that it was started with.
        reason: why it stopped or failed.
        configuration: the run as TOML; `onward train --config` does the same.
        parent_model, parent_version: what is trained further; empty: a network of the zoo.
        created, started, ended: seconds since 1970; 0: not yet.
        epoch, epochs, step: how far it is.
        figures: loss and metrics, the latest of each.
        resumable: whether there is a checkpoint.
        sha256, data_hash: of the model's file, and of the data; empty before it is completed.
        last_event: number of the latest event.
    """

    id: str
    state: str
    title: str
    reason: str
    configuration: str
    parent_model: str
    parent_version: str
    created: float
    started: float
    ended: float
    epoch: int
    epochs: int
    step: int
    figures: Mapping[str, float]
    resumable: bool
    sha256: str
    data_hash: str
    last_event: int


@final
@dataclass(frozen=True, slots=True)
class TrainingEvent:
    """What happened in a job: its number from 1, seconds since 1970, kind, and the fields of that kind."""

    sequence: int
    time: float
    kind: str
    fields: Mapping[str, Any]


@final
@dataclass(frozen=True, slots=True)
class TrainingEvaluation:
    """Figures on a data set, and what a comparison with onnxruntime found.

    Attributes:
        figures: metrics by name.
        samples: how many there were.
        classes: their names.
        confusion: int64 [K, K], rows the true classes; None where there is none.
        agrees: whether the engines agree.
        max_absolute_error: the largest difference between them.
        difference: the first node or output that differs.
    """

    figures: Mapping[str, float]
    samples: int
    classes: tuple[str, ...]
    confusion: Array | None
    agrees: bool
    max_absolute_error: float
    difference: str


@final
@dataclass(frozen=True, slots=True)
class ModelLineage:
    """Where a version of a model comes from.

    Attributes:
        promoted, withdrawn: seconds since 1970; `withdrawn` is 0 where it was not rolled back.
        agrees: whether the engines agreed when it was promoted.
        max_absolute_error: the largest difference between them.
        difference: the first node or output that differed.
    """

    model: str
    version: str
    job: str
    parent_model: str
    parent_version: str
    data_hash: str
    configuration: str
    metrics: Mapping[str, float] = field(repr=False)
    sha256: str
    promoted: float
    withdrawn: float
    agrees: bool
    max_absolute_error: float
    difference: str


@final
@dataclass(frozen=True, slots=True, eq=False)
class ModelParameters:
    """The parameters of a version.

    Attributes:
        model, version: whose.
        names, shapes: in the order of `values`.
        values: float32 [n], all of them one after the other.
    """

    model: str
    version: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    values: Array
