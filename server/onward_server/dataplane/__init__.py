"""The service without a wire: models, engines, cross-checks. Nothing here imports gRPC."""

from __future__ import annotations

from onward_server.dataplane.crosscheck import CheckOutcome, CheckStatistics
from onward_server.dataplane.executors import Executor, OnnxRuntimeExecutor, OnwardExecutor
from onward_server.dataplane.plane import DataPlane
from onward_server.dataplane.served import Inference, InferStatistics, ServedModel

__all__ = [
    "CheckOutcome",
    "CheckStatistics",
    "DataPlane",
    "Executor",
    "InferStatistics",
    "Inference",
    "OnnxRuntimeExecutor",
    "OnwardExecutor",
    "ServedModel",
]
