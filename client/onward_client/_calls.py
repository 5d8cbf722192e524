"""What both clients do, without doing input or output: a conversation is a generator of calls.

A generator yields a Call, is sent the response message, and returns the result. The synchronous client drives
it with a plain loop, the asynchronous one with awaits.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, final

import numpy as np

from onward_client._values import array_of, decode_output, encode_input, is_plain
from onward_client.errors import (
    ClientError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerError,
    UnsupportedRequestError,
)
from onward_client.types import (
    Array,
    CrossCheckStatistics,
    InferResult,
    ModelConfig,
    ModelMetadata,
    ModelStatistics,
    ParameterValue,
    ServerMetadata,
    TensorMetadata,
)
from onward_protos import cross_check_pb2, grpc_service_pb2

__all__ = ["Call", "Conversation", "Conversations", "Inputs"]

_T = TypeVar("_T")

Inputs: TypeAlias = Mapping[str, Any] | Sequence[Any] | Array
"""Arrays (or Python lists and scalars) by name, by position, or the single input of a model."""


@final
@dataclass(frozen=True, slots=True)
class Call:
    """One remote call.

    Attributes:
        path: gRPC method.
        request: the message to send.
        response_type: the class of the message that comes back.
        subject: what the call is about, for error texts.
        wait: whether to wait for a server that cannot be reached yet.
        missing: the error where there is no such thing.
    """

    path: str
    request: Any
    response_type: Any
    subject: str
    wait: bool = False
    missing: type[ClientError] = ModelNotFoundError


Conversation: TypeAlias = Generator[Call, Any, _T]


@final
class Conversations:
    """The calls of a client, and its cache of model metadata."""

    def __init__(self) -> None:
        self._metadata: dict[tuple[str, str], ModelMetadata] = {}
        self._lock = threading.Lock()

    def server_live(self) -> Conversation[bool]:
        request = grpc_service_pb2.ServerLiveRequest()
        response = yield _inference("ServerLive", request, "the server's liveness")
        return bool(response.live)

    def server_ready(self, wait: bool = False) -> Conversation[bool]:
        request = grpc_service_pb2.ServerReadyRequest()
        response = yield _inference("ServerReady", request, "the server's readiness", wait)
        return bool(response.ready)

    def model_ready(self, model: str, version: str) -> Conversation[bool]:
        request = grpc_service_pb2.ModelReadyRequest(name=model, version=version)
        response = yield _inference("ModelReady", request, _subject("readiness", model, version))
        return bool(response.ready)

    def server_metadata(self) -> Conversation[ServerMetadata]:
        request = grpc_service_pb2.ServerMetadataRequest()
        response = yield _inference("ServerMetadata", request, "the server's metadata")
        return ServerMetadata(response.name, response.version, tuple(response.extensions))

    def metadata(self, model: str, version: str) -> Conversation[ModelMetadata]:
        request = grpc_service_pb2.ModelMetadataRequest(name=model, version=version)
        response = yield _inference("ModelMetadata", request, _subject("metadata", model, version))
        metadata = ModelMetadata(
            response.name,
            tuple(response.versions),
            response.platform,
            tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in response.inputs),
            tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in response.outputs),
        )
        with self._lock:
            self._metadata[model, version] = metadata
        return metadata

    def config(self, model: str, version: str) -> Conversation[ModelConfig]:
        request = grpc_service_pb2.ModelConfigRequest(name=model, version=version)
        response = yield _inference("ModelConfig", request, _subject("configuration", model, version))
        config = response.config
        return ModelConfig(
            config.name,
            config.platform,
            config.backend,
            config.max_batch_size,
            {key: value.string_value for key, value in config.parameters.items()},
        )

    def statistics(self, model: str, version: str) -> Conversation[tuple[ModelStatistics, ...]]:
        request = grpc_service_pb2.ModelStatisticsRequest(name=model, version=version)
        response = yield _inference("ModelStatistics", request, _subject("statistics", model, version))
        return tuple(
            ModelStatistics(
                entry.name,
                entry.version,
                entry.inference_stats.success.count,
                entry.inference_stats.success.ns / 1e9,
                entry.inference_stats.fail.count,
                entry.inference_stats.fail.ns / 1e9,
                entry.inference_stats.queue.ns / 1e9,
                entry.inference_stats.compute_infer.ns / 1e9,
            )
            for entry in response.model_stats
        )

    def cross_checks(self, model: str, version: str) -> Conversation[tuple[CrossCheckStatistics, ...]]:
        response = yield Call(
            "/onward.v1.CrossCheckService/GetStatistics",
            cross_check_pb2.GetStatisticsRequest(model_name=model, model_version=version),
            cross_check_pb2.GetStatisticsResponse,
            _subject("cross-check statistics", model, version),
        )
        return tuple(
            CrossCheckStatistics(
                entry.model_name,
                entry.model_version,
                entry.policy,
                entry.on_mismatch,
                entry.requests,
                entry.checks,
                entry.passed,
                entry.failed,
                entry.skipped,
                entry.dropped,
                entry.max_absolute_error,
                entry.max_relative_error,
                entry.last_mismatch,
            )
            for entry in response.statistics
        )

    def infer(
        self, model: str, inputs: Inputs, outputs: Sequence[str] | None, version: str, request_id: str
    ) -> Conversation[InferResult]:
        if isinstance(outputs, str):
            raise InvalidRequestError(f"outputs is the string {outputs!r}; give a list of names")
        request = grpc_service_pb2.ModelInferRequest(
            model_name=model,
            model_version=version,
            id=request_id,
            outputs=[
                grpc_service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name)
                for name in outputs or ()
            ],
        )
        named = yield from self._named(model, inputs, version)
        datatypes: dict[str, str] = {}
        if any(is_plain(value) for value in named.values()):
            metadata = yield from self._cached_metadata(model, version)
            datatypes = {tensor.name: tensor.datatype for tensor in metadata.inputs}
        for name, value in named.items():
            if name not in datatypes and is_plain(value):
                known = ", ".join(repr(key) for key in datatypes) or "none"
                raise InvalidRequestError(f"model {model!r} has no input {name!r}; its inputs are {known}")
            datatype, array = array_of(name, value, datatypes.get(name, ""))
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(encode_input(name, datatype, array))
        response = yield _inference("ModelInfer", request, _subject("prediction", model, version))
        return _result(response)

    def forget(self, error: ClientError) -> None:
        """Drop cached metadata after an error that a changed model would explain."""
        if isinstance(error, (InvalidRequestError, ModelNotFoundError)):
            with self._lock:
                self._metadata.clear()

    def _named(self, model: str, inputs: Inputs, version: str) -> Conversation[dict[str, Any]]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        values = [inputs] if isinstance(inputs, np.ndarray) else inputs
        if not isinstance(values, (list, tuple)):
            raise InvalidRequestError(
                f"inputs is a {type(inputs).__name__}; give a mapping of names to arrays, a list with one "
                "entry for each input, or one array"
            )
        metadata = yield from self._cached_metadata(model, version)
        names = [tensor.name for tensor in metadata.inputs]
        if len(values) != len(names):
            raise InvalidRequestError(
                f"{len(values)} inputs by position; model {model!r} has {len(names)}: {', '.join(names)}"
            )
        return dict(zip(names, values, strict=True))

    def _cached_metadata(self, model: str, version: str) -> Conversation[ModelMetadata]:
        with self._lock:
            cached = self._metadata.get((model, version))
        if cached is not None:
            return cached
        return (yield from self.metadata(model, version))


def _inference(method: str, request: Any, subject: str, wait: bool = False) -> Call:
    response_type = getattr(grpc_service_pb2, f"{method}Response")
    return Call(f"/inference.GRPCInferenceService/{method}", request, response_type, subject, wait)


def _subject(what: str, model: str, version: str) -> str:
    if not model:
        return f"{what} of all models"
    return f"{what} of model {model!r}" + (f" version {version!r}" if version else "")


def _result(response: grpc_service_pb2.ModelInferResponse) -> InferResult:
    if len(response.raw_output_contents) != len(response.outputs):
        if response.raw_output_contents:
            raise ServerError("the answer's raw_output_contents does not have one entry for each output")
        raise UnsupportedRequestError("the answer has typed contents; this client reads raw_output_contents")
    return InferResult(
        {
            tensor.name: decode_output(tensor.name, tensor.datatype, tensor.shape, raw)
            for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        },
        response.model_name,
        response.model_version,
        response.id,
        {key: _parameter(value) for key, value in response.parameters.items()},
    )


def _parameter(value: grpc_service_pb2.InferParameter) -> ParameterValue:
    chosen = value.WhichOneof("parameter_choice")
    result: ParameterValue = getattr(value, chosen) if chosen else ""
    return result
