"""The protocol's calls, as conversations, and a cache of model metadata."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np

from onward_client._conversations import Call, Calls, Conversation, one
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
    BatchStatistics,
    CrossCheckStatistics,
    InferResult,
    ModelConfig,
    ModelMetadata,
    ModelStatistics,
    ParameterValue,
    RepositoryEntry,
    ServerMetadata,
    TensorMetadata,
)
from onward_protos import cross_check_pb2, grpc_service_pb2

__all__ = ["Inputs", "ProtocolCalls"]

Inputs: TypeAlias = Mapping[str, Any] | Sequence[Any] | Array
"""Arrays (or Python lists and scalars) by name, by position, or the single input of a model."""

# bool before int, which it is one of
_PARAMETERS = ((bool, "bool_param"), (int, "int64_param"), (float, "double_param"), (str, "string_param"))


@final
class ProtocolCalls:
    """The methods that both clients have."""

    def __init__(self) -> None:
        self._metadata: dict[tuple[str, str], ModelMetadata] = {}
        self._lock = threading.Lock()

    def server_live(self, *, timeout: float | None = None) -> Conversation[bool]:
        """Whether the server answers at all."""
        request = grpc_service_pb2.ServerLiveRequest()
        call = _inference("ServerLive", request, "the server's liveness")
        return one(call, lambda found: bool(found.live), timeout)

    def server_ready(self, *, timeout: float | None = None) -> Conversation[bool]:
        """Whether the server takes requests."""
        return one(_readiness(wait=False), lambda found: bool(found.ready), timeout)

    def wait_until_ready(self, timeout: float) -> Conversation[bool]:
        """Like `server_ready`, but waits up to `timeout` s for a server that cannot be reached yet."""
        return one(_readiness(wait=True), lambda found: bool(found.ready), timeout)

    def model_ready(
        self, model: str, version: str = "", *, timeout: float | None = None
    ) -> Conversation[bool]:
        """Whether a model, or one version of it, takes requests; False for an unknown one."""
        request = grpc_service_pb2.ModelReadyRequest(name=model, version=version)
        call = _inference("ModelReady", request, _subject("readiness", model, version))
        return one(call, lambda found: bool(found.ready), timeout)

    def server_metadata(self, *, timeout: float | None = None) -> Conversation[ServerMetadata]:
        """The server's name, version and extensions."""
        request = grpc_service_pb2.ServerMetadataRequest()
        call = _inference("ServerMetadata", request, "the server's metadata")
        return one(
            call, lambda found: ServerMetadata(found.name, found.version, tuple(found.extensions)), timeout
        )

    def metadata(
        self, model: str, version: str = "", *, timeout: float | None = None
    ) -> Conversation[ModelMetadata]:
        """A model's versions, inputs and outputs. Raises ModelNotFoundError."""
        return Conversation(self._described(model, version), timeout)

    def config(
        self, model: str, version: str = "", *, timeout: float | None = None
    ) -> Conversation[ModelConfig]:
        """How a model is served. Raises ModelNotFoundError."""
        request = grpc_service_pb2.ModelConfigRequest(name=model, version=version)
        call = _inference("ModelConfig", request, _subject("configuration", model, version))
        return one(call, _config, timeout)

    def statistics(
        self, model: str = "", version: str = "", *, timeout: float | None = None
    ) -> Conversation[tuple[ModelStatistics, ...]]:
        """Counts and times of a model's versions, or of all models. Raises ModelNotFoundError."""
        request = grpc_service_pb2.ModelStatisticsRequest(name=model, version=version)
        call = _inference("ModelStatistics", request, _subject("statistics", model, version))
        return one(call, lambda found: tuple(map(_statistics, found.model_stats)), timeout)

    def cross_checks(
        self, model: str = "", version: str = "", *, timeout: float | None = None
    ) -> Conversation[tuple[CrossCheckStatistics, ...]]:
        """What an Onward server's cross-checks found. Raises ModelNotFoundError."""
        call = Call(
            "/onward.v1.CrossCheckService/GetStatistics",
            cross_check_pb2.GetStatisticsRequest(model_name=model, model_version=version),
            cross_check_pb2.GetStatisticsResponse,
            _subject("cross-check statistics", model, version),
        )
        return one(call, lambda found: tuple(map(_cross_check, found.statistics)), timeout)

    def repository(
        self, *, ready_only: bool = False, timeout: float | None = None
    ) -> Conversation[tuple[RepositoryEntry, ...]]:
        """The versions in the server's repository, with the reason where one is not ready."""
        request = grpc_service_pb2.RepositoryIndexRequest(ready=ready_only)
        call = _inference("RepositoryIndex", request, "the repository's index")
        return one(call, lambda found: tuple(map(_entry, found.models)), timeout)

    def load(
        self,
        model: str,
        *,
        config: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        timeout: float | None = None,
    ) -> Conversation[None]:
        """Load a model, or load it again; the server has to allow it, and needs the role `manage`.

        Args:
            model: its name.
            config: in the place of the repository's configuration.
            files: contents by `<version>/<file>`, in the place of the model's folder; they need `config`.
            timeout: seconds; None: the client's.

        Raises:
            InvalidRequestError: a field of `config`, a file's name, or a server that does not allow it.
            ModelNotFoundError: no such model in the repository.
            UnavailableError: it could not be loaded; what was served before stays.
        """
        request = grpc_service_pb2.RepositoryModelLoadRequest(model_name=model)
        if config is not None:
            try:
                request.parameters["config"].string_param = json.dumps(dict(config))
            except (TypeError, ValueError) as error:
                raise InvalidRequestError(f"config: {error}") from None
        for name, content in (files or {}).items():
            request.parameters[f"file:{name}"].bytes_param = content
        call = _inference("RepositoryModelLoad", request, _subject("loading", model, ""))
        return one(call, _nothing, timeout)

    def unload(self, model: str, *, timeout: float | None = None) -> Conversation[None]:
        """Stop serving a model; the server has to allow it, and needs the role `manage`.

        Raises:
            InvalidRequestError: the server does not allow it.
            ModelNotFoundError: no such model.
        """
        request = grpc_service_pb2.RepositoryModelUnloadRequest(model_name=model)
        return one(
            _inference("RepositoryModelUnload", request, _subject("unloading", model, "")), _nothing, timeout
        )

    def predict(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[str] | None = None,
        version: str = "",
        timeout: float | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
    ) -> Conversation[dict[str, Array]]:
        """Ask a model for its outputs.

        Args:
            model: its name.
            inputs: arrays by name; a list or tuple with one entry for each input, in the model's order; or
                the array of a model with one input. An array keeps its dtype, and the server refuses one
                that does not fit. Python lists and scalars take the model's datatype: int to integer types
                that hold it and to floating-point types, float to floating-point types only.
            outputs: names of the outputs wanted; None: all.
            version: "" for the latest.
            timeout: seconds; None: the client's.
            parameters: of the request, such as `priority` (1 goes first).

        Returns:
            Arrays by name. BYTES come as object arrays of `bytes`, BF16 as float32.

        Raises:
            InvalidRequestError: the inputs or outputs do not fit the model.
            ModelNotFoundError: no such model or version.
            DeadlineExceededError: no answer in time.
            CrossCheckError: the server's engines disagree, and its policy is to refuse then.
            ClientError: see `onward_client.errors` for the others.
        """

        def calls() -> Calls[dict[str, Array]]:
            result = yield from self._answered(model, inputs, outputs, version, "", parameters)
            return result.outputs

        return Conversation(calls(), timeout)

    def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[str] | None = None,
        version: str = "",
        timeout: float | None = None,
        request_id: str = "",
        parameters: Mapping[str, ParameterValue] | None = None,
    ) -> Conversation[InferResult]:
        """Like `predict`, with everything that the answer tells."""
        calls = self._answered(model, inputs, outputs, version, request_id, parameters)
        return Conversation(calls, timeout)

    def forget(self, error: ClientError) -> None:
        """Drop cached metadata after an error that a changed model would explain."""
        if isinstance(error, (InvalidRequestError, ModelNotFoundError)):
            with self._lock:
                self._metadata.clear()

    def _answered(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[str] | None,
        version: str,
        request_id: str,
        parameters: Mapping[str, ParameterValue] | None,
    ) -> Calls[InferResult]:
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
        for name, parameter in (parameters or {}).items():
            _set_parameter(request.parameters[name], name, parameter)
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

    def _named(self, model: str, inputs: Inputs, version: str) -> Calls[dict[str, Any]]:
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

    def _cached_metadata(self, model: str, version: str) -> Calls[ModelMetadata]:
        with self._lock:
            cached = self._metadata.get((model, version))
        if cached is not None:
            return cached
        return (yield from self._described(model, version))

    def _described(self, model: str, version: str) -> Calls[ModelMetadata]:
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


def _inference(method: str, request: Any, subject: str, wait: bool = False) -> Call:
    response_type = getattr(grpc_service_pb2, f"{method}Response")
    return Call(f"/inference.GRPCInferenceService/{method}", request, response_type, subject, wait)


def _readiness(*, wait: bool) -> Call:
    request = grpc_service_pb2.ServerReadyRequest()
    return _inference("ServerReady", request, "the server's readiness", wait)


def _subject(what: str, model: str, version: str) -> str:
    if not model:
        return f"{what} of all models"
    return f"{what} of model {model!r}" + (f" version {version!r}" if version else "")


def _config(response: grpc_service_pb2.ModelConfigResponse) -> ModelConfig:
    config = response.config
    return ModelConfig(
        config.name,
        config.platform,
        config.backend,
        config.max_batch_size,
        {key: value.string_value for key, value in config.parameters.items()},
        tuple(config.dynamic_batching.preferred_batch_size),
        config.dynamic_batching.max_queue_delay_microseconds / 1e6,
        sum(group.count for group in config.instance_group),
        tuple(map(str, config.version_policy.specific.versions)),
    )


def _statistics(entry: grpc_service_pb2.ModelStatistics) -> ModelStatistics:
    counts = entry.inference_stats
    return ModelStatistics(
        entry.name,
        entry.version,
        counts.success.count,
        counts.success.ns / 1e9,
        counts.fail.count,
        counts.fail.ns / 1e9,
        counts.queue.ns / 1e9,
        counts.compute_infer.ns / 1e9,
        counts.compute_input.ns / 1e9,
        counts.compute_output.ns / 1e9,
        entry.inference_count,
        entry.execution_count,
        entry.last_inference / 1e3,
        counts.cache_hit.count,
        counts.cache_hit.ns / 1e9,
        counts.cache_miss.count,
        counts.cache_miss.ns / 1e9,
        tuple(
            BatchStatistics(
                batch.batch_size,
                batch.compute_infer.count,
                batch.compute_input.ns / 1e9,
                batch.compute_infer.ns / 1e9,
                batch.compute_output.ns / 1e9,
            )
            for batch in entry.batch_stats
        ),
    )


def _cross_check(entry: cross_check_pb2.CrossCheckStatistics) -> CrossCheckStatistics:
    return CrossCheckStatistics(
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
        entry.unchecked,
        entry.first_difference,
        entry.last_unchecked,
    )


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


def _entry(found: grpc_service_pb2.RepositoryIndexResponse.ModelIndex) -> RepositoryEntry:
    return RepositoryEntry(found.name, found.version, found.state, found.reason)


def _nothing(response: Any) -> None:
    return None


def _set_parameter(target: grpc_service_pb2.InferParameter, name: str, value: ParameterValue) -> None:
    kind = next((field for kind, field in _PARAMETERS if isinstance(value, kind)), None)
    if kind is None:
        raise InvalidRequestError(
            f"parameters[{name!r}] is a {type(value).__name__}; give a bool, an int, a float or a str"
        )
    try:
        setattr(target, kind, value)
    except ValueError as error:
        raise InvalidRequestError(f"parameters[{name!r}]: {error}") from None


def _parameter(value: grpc_service_pb2.InferParameter) -> ParameterValue:
    chosen = value.WhichOneof("parameter_choice")
    result: ParameterValue = getattr(value, chosen) if chosen else ""
    return result
