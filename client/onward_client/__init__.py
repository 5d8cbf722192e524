"""Calls servers of the Open Inference Protocol over gRPC: NumPy arrays in, NumPy arrays out.

    with Client("127.0.0.1:8001") as client:
        outputs = client.predict("lenet5", {"image": images})

`AsyncClient` is the same with `await`. Needs numpy, grpcio and protobuf only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onward_client._async import AsyncClient
    from onward_client._sync import Client
    from onward_client.errors import (
        AuthenticationError,
        CancelledError,
        ClientError,
        CrossCheckError,
        DeadlineExceededError,
        InvalidRequestError,
        JobNotFoundError,
        ModelNotFoundError,
        OverloadedError,
        ServerError,
        UnavailableError,
        UnsupportedRequestError,
    )
    from onward_client.types import (
        BatchStatistics,
        CrossCheckStatistics,
        InferResult,
        ModelConfig,
        ModelLineage,
        ModelMetadata,
        ModelParameters,
        ModelStatistics,
        RepositoryEntry,
        ServerMetadata,
        TensorMetadata,
        TrainingEvaluation,
        TrainingEvent,
        TrainingJob,
    )

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BatchStatistics",
    "CancelledError",
    "Client",
    "ClientError",
    "CrossCheckError",
    "CrossCheckStatistics",
    "DeadlineExceededError",
    "InferResult",
    "InvalidRequestError",
    "JobNotFoundError",
    "ModelConfig",
    "ModelLineage",
    "ModelMetadata",
    "ModelNotFoundError",
    "ModelParameters",
    "ModelStatistics",
    "OverloadedError",
    "RepositoryEntry",
    "ServerError",
    "ServerMetadata",
    "TensorMetadata",
    "TrainingEvaluation",
    "TrainingEvent",
    "TrainingJob",
    "UnavailableError",
    "UnsupportedRequestError",
]

_HOMES = {
    "AsyncClient": "_async",
    "BatchStatistics": "types",
    "Client": "_sync",
    "CrossCheckStatistics": "types",
    "InferResult": "types",
    "ModelConfig": "types",
    "ModelLineage": "types",
    "ModelMetadata": "types",
    "ModelParameters": "types",
    "ModelStatistics": "types",
    "RepositoryEntry": "types",
    "ServerMetadata": "types",
    "TensorMetadata": "types",
    "TrainingEvaluation": "types",
    "TrainingEvent": "types",
    "TrainingJob": "types",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: the command line shows its help without gRPC."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
