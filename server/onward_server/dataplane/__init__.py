"""The service without a wire: models, engines, cross-checks. Nothing here imports gRPC."""

from __future__ import annotations

from onward_server.dataplane.crosscheck import CheckOutcome, CheckStatistics
from onward_server.dataplane.executors import Executor, OnnxRuntimeExecutor, OnwardExecutor
from onward_server.dataplane.messages import InferAnswer, InferRequest, RequestedOutput
from onward_server.dataplane.plane import DataPlane
from onward_server.dataplane.served import Inference, ServedModel
from onward_server.dataplane.statistics import InferStatistics

__all__ = [
    "CheckOutcome",
    "CheckStatistics",
    "DataPlane",
    "Executor",
    "InferAnswer",
    "InferRequest",
    "InferStatistics",
    "Inference",
    "OnnxRuntimeExecutor",
    "OnwardExecutor",
    "RequestedOutput",
    "ServedModel",
]
