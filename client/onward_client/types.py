"""What the client returns besides arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np

__all__ = [
    "Array",
    "CrossCheckStatistics",
    "InferResult",
    "ModelConfig",
    "ModelMetadata",
    "ModelStatistics",
    "ParameterValue",
    "ServerMetadata",
    "TensorMetadata",
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
    """How a model is served; `parameters` holds the engine and the cross-check's settings."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    parameters: Mapping[str, str]


@final
@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """The server's name, version and protocol extensions."""

    name: str
    version: str
    extensions: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Counts of requests since the server started and their total times in seconds."""

    name: str
    version: str
    success_count: int
    success_seconds: float
    fail_count: int
    fail_seconds: float
    queue_seconds: float
    compute_seconds: float


@final
@dataclass(frozen=True, slots=True)
class CrossCheckStatistics:
    """What the cross-checks of one version of a model found since the server started.

    Attributes:
        policy: off, sample, every or shadow.
        on_mismatch: log, fail or prefer-onnxruntime.
        requests: requests computed.
        checks: requests that both engines computed; passed + failed.
        skipped: requests that the policy did not select.
        dropped: shadow checks that were given up.
        max_absolute_error: largest difference between finite elements.
        max_relative_error: largest difference relative to onnxruntime's element.
        last_mismatch: text of the latest mismatch, empty when there was none.
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
