"""The gRPC services: each method converts, awaits the data plane, and converts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, TypeAlias, final

from onward_protos import cross_check_pb2 as checks
from onward_protos import grpc_service_pb2 as messages
from onward_server.access import AccessLog, request_id, trace_id
from onward_server.dataplane import DataPlane, InferRequest
from onward_server.dataplane.overrides import override_from
from onward_server.errors import DeadlineError, ModelNotFoundError, ModelUnavailableError, RequestError
from onward_server.grpc_calls import Call, CallFailed, Glance, StreamMethod, UnaryMethod
from onward_server.grpc_convert import (
    check_statistics,
    infer_request,
    infer_response,
    infer_statistics,
    is_large,
    is_quick_to_decode,
    model_config,
    model_metadata,
)
from onward_server.grpc_guard import Answer, Guard, Method, Split, serialized, unstarted
from onward_server.grpc_wire import model_of, split_infer
from onward_server.server_metadata import extensions, server_version
from onward_server.statuses import public_reason

__all__ = ["CROSS_CHECK_SERVICE", "INFERENCE_SERVICE", "methods"]

INFERENCE_SERVICE: str = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
CROSS_CHECK_SERVICE: str = checks.DESCRIPTOR.services_by_name["CrossCheckService"].full_name


def methods(
    plane: DataPlane, log: AccessLog
) -> tuple[dict[str, UnaryMethod], dict[str, StreamMethod], dict[str, Glance]]:
    """The methods of the services over a data plane by path: unary ones, those of streams, and what looks at
    messages of unary ones before they have come.
    """
    guard = Guard(plane, log)
    service = _Inference(plane, guard, log)
    inference = {
        "ServerLive": Method(service.server_live, messages.ServerLiveRequest, "nothing"),
        "ServerReady": Method(service.server_ready, messages.ServerReadyRequest, "nothing"),
        "ModelReady": Method(service.model_ready, messages.ModelReadyRequest, "nothing"),
        "ServerMetadata": Method(service.server_metadata, messages.ServerMetadataRequest, "read"),
        "ModelMetadata": Method(service.model_metadata, messages.ModelMetadataRequest, "read"),
        "ModelConfig": Method(service.model_config, messages.ModelConfigRequest, "read"),
        "ModelStatistics": Method(service.model_statistics, messages.ModelStatisticsRequest, "read"),
        "RepositoryIndex": Method(service.repository_index, messages.RepositoryIndexRequest, "read"),
        "ModelInfer": service.infer_method,
        "RepositoryModelLoad": Method(service.load, messages.RepositoryModelLoadRequest, "manage"),
        "RepositoryModelUnload": Method(service.unload, messages.RepositoryModelUnloadRequest, "manage"),
        "SystemSharedMemoryStatus": Method(
            service.memory_status, messages.SystemSharedMemoryStatusRequest, "read"
        ),
        "SystemSharedMemoryRegister": Method(
            service.memory_register, messages.SystemSharedMemoryRegisterRequest, "manage"
        ),
        "SystemSharedMemoryUnregister": Method(
            service.memory_unregister, messages.SystemSharedMemoryUnregisterRequest, "manage"
        ),
        "TraceSetting": Method(
            service.trace_setting, messages.TraceSettingRequest, "read", changes=_has_settings
        ),
        "LogSettings": Method(
            service.log_settings, messages.LogSettingsRequest, "read", changes=_has_settings
        ),
    }
    cross_check = {"GetStatistics": Method(service.check_counts, checks.GetStatisticsRequest, "read")}
    unary = {
        f"/{owner}/{name}": guard.unary(f"{owner}/{name}", method)
        for owner, found in ((INFERENCE_SERVICE, inference), (CROSS_CHECK_SERVICE, cross_check))
        for name, method in found.items()
    }
    name = f"{INFERENCE_SERVICE}/ModelInfer"
    glances = {f"/{name}": guard.glance(name, service.infer_method, service.glance, _named)}
    return unary, {f"/{INFERENCE_SERVICE}/ModelStreamInfer": service.stream}, glances


_Streamed: TypeAlias = tuple[bytes, str, str]


@final
class _Inference:
    def __init__(self, plane: DataPlane, guard: Guard, log: AccessLog) -> None:
        self._plane = plane
        self._guard = guard
        self._log = log
        self.infer_method = Method(
            self.model_infer, messages.ModelInferRequest, "predict", counted=True, split=split_infer
        )

    def server_live(self, request: Any, call: Call) -> Any:
        return messages.ServerLiveResponse(live=True)

    def server_ready(self, request: Any, call: Call) -> Any:
        return messages.ServerReadyResponse(ready=self._plane.ready)

    def model_ready(self, request: Any, call: Call) -> Any:
        try:
            self._plane.model(request.name, request.version)
        except (ModelNotFoundError, ModelUnavailableError):
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=self._plane.ready)

    def server_metadata(self, request: Any, call: Call) -> Any:
        return messages.ServerMetadataResponse(
            name="onward", version=server_version(), extensions=extensions(self._plane.settings)
        )

    def model_metadata(self, request: Any, call: Call) -> Any:
        model = self._plane.model(request.name, request.version)
        return model_metadata(model, self._plane.versions(model.name))

    def model_config(self, request: Any, call: Call) -> Any:
        model = self._plane.model(request.name, request.version)
        return messages.ModelConfigResponse(config=model_config(model, self._plane.versions(model.name)))

    def model_statistics(self, request: Any, call: Call) -> Any:
        models = self._plane.select(request.name, request.version)
        return messages.ModelStatisticsResponse(model_stats=map(infer_statistics, models))

    def repository_index(self, request: Any, call: Call) -> Any:
        _check_repository(request.repository_name)
        response = messages.RepositoryIndexResponse()
        for name, version, state, reason in self._plane.states(ready_only=request.ready):
            response.models.add(
                name=name, version=str(version or ""), state=state, reason=public_reason(reason)
            )
        return response

    async def load(self, request: Any, call: Call) -> Any:
        _check_repository(request.repository_name)
        parameters = {}
        for name, value in request.parameters.items():
            kind = value.WhichOneof("parameter_choice")
            if kind is not None:
                parameters[name] = getattr(value, kind)
        await self._plane.load(request.model_name, override_from(parameters))
        return messages.RepositoryModelLoadResponse()

    async def unload(self, request: Any, call: Call) -> Any:
        _check_repository(request.repository_name)
        await self._plane.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    def memory_status(self, request: Any, call: Call) -> Any:
        response = messages.SystemSharedMemoryStatusResponse()
        for name, status in self._plane.regions.status(request.name).items():
            region = response.regions[name]
            region.name, region.key, region.offset = name, status.key, status.offset
            region.byte_size = status.size
        return response

    def memory_register(self, request: Any, call: Call) -> Any:
        self._plane.regions.register(request.name, request.key, request.offset, request.byte_size)
        return messages.SystemSharedMemoryRegisterResponse()

    def memory_unregister(self, request: Any, call: Call) -> Any:
        self._plane.regions.unregister(request.name)
        return messages.SystemSharedMemoryUnregisterResponse()

    def trace_setting(self, request: Any, call: Call) -> Any:
        given = {name: list(value.value) for name, value in request.settings.items()}
        response = messages.TraceSettingResponse()
        for name, values in self._plane.trace_settings(request.model_name, given).items():
            response.settings[name].value.extend(values)
        return response

    def log_settings(self, request: Any, call: Call) -> Any:
        given = {
            name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
            for name, value in request.settings.items()
        }
        response = messages.LogSettingsResponse()
        for name, value in self._plane.log_settings(given).items():
            kind = "bool_param" if isinstance(value, bool) else "uint32_param"
            setattr(response.settings[name], "string_param" if isinstance(value, str) else kind, value)
        return response

    def check_counts(self, request: Any, call: Call) -> Any:
        models = self._plane.select(request.model_name, request.model_version)
        return checks.GetStatisticsResponse(statistics=map(check_statistics, models))

    def glance(self, start: bytes | memoryview, call: Call) -> None:
        known = model_of(start)
        if known is not None:
            self._plane.check_room(*known, call.deadline)

    def model_infer(self, request: Split, call: Call) -> Answer:
        plane, message = self._plane, request.message
        plane.check_room(message.model_name, message.model_version, call.deadline)
        if not is_quick_to_decode(message, request.raw):
            return self._decode_first(request, call)
        neutral = self._neutral(request, call)
        answer = plane.infer_now(neutral)
        return self._infer(neutral) if answer is None else infer_response(answer)

    def _neutral(self, request: Split, call: Call) -> InferRequest:
        plane = self._plane
        return infer_request(
            request.message, request.raw, plane.settings.limits, call.deadline, call.metadata, plane.regions
        )

    async def _decode_first(self, request: Split, call: Call) -> Any:
        return await self._infer(await asyncio.to_thread(self._neutral, request, call))

    async def _infer(self, request: InferRequest) -> Any:
        answer = await self._plane.infer(request)
        if is_large(answer):
            return await asyncio.to_thread(infer_response, answer)
        return infer_response(answer)

    async def stream(self, call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Answers in the order of the requests. An error is an answer too, and the stream goes on, unless the
        metadata `triton_grpc_error: true` asks for the stream to end with it.
        """
        start = time.perf_counter()
        name = f"{INFERENCE_SERVICE}/ModelStreamInfer"
        identity = request_id(call.metadata.get("x-request-id", ""))
        queue: asyncio.Queue[asyncio.Task[_Streamed] | _Streamed | None] = asyncio.Queue(
            self._plane.settings.limits.stream_requests
        )
        try:
            if call.deadline is not None and call.deadline <= time.monotonic():
                raise DeadlineError("the stream's deadline passed before it was begun")
            key = self._guard.authorized(call, "predict")
        except Exception as error:  # noqa: BLE001 - as in Guard
            raise CallFailed(*self._guard.failure(error, name, identity)) from None
        ends_with_errors = call.metadata.get("triton_grpc_error", "").lower() in ("true", "1")

        async def read() -> None:
            try:
                async for data in requests:
                    # reading stops here while too much is unanswered
                    await queue.put(self._stream_one(data, call, identity))
            except CallFailed as failed:
                await queue.put((b"", failed.code, failed.text))
            await queue.put(None)

        reader = asyncio.get_running_loop().create_task(read())
        current: asyncio.Task[_Streamed] | _Streamed | None = None
        try:
            while (current := await queue.get()) is not None:
                answer, code, text = await current if isinstance(current, asyncio.Task) else current
                if code != "OK" and (ends_with_errors or not answer):
                    raise CallFailed(code, text)
                yield answer
        finally:
            reader.cancel()
            waiting: list[Any] = [current]
            with contextlib.suppress(asyncio.QueueEmpty):
                while True:
                    waiting.append(queue.get_nowait())
            for task in waiting:
                if isinstance(task, asyncio.Task):
                    task.cancel()
            if self._log.takes("OK"):
                self._log.write(
                    transport="grpc",
                    call=name,
                    code="OK",
                    start=start,
                    identity=identity,
                    trace_id=trace_id(call.metadata),
                    key=key,
                )

    def _stream_one(self, data: bytes, call: Call, identity: str) -> asyncio.Task[_Streamed] | _Streamed:
        """One answer of a stream with its status: at once, or by a task."""
        request: Any = None
        size = len(data)
        admitted = False
        try:
            self._plane.admit(size)
            admitted = True
            split = self._guard.split(self.infer_method, data)
            if split is None:
                split = Split(self._guard.read(messages.ModelInferRequest, data), None)
            request = split.message
            response = self.model_infer(split, call)
            if not isinstance(response, messages.ModelInferResponse):
                task = asyncio.get_running_loop().create_task(self._streamed(response, request, identity))
                task.add_done_callback(lambda _: self._plane.leave(size))
                task.add_done_callback(lambda _: unstarted(response))
                return task
            self._plane.leave(size)
            return _final(response).SerializeToString(), "OK", ""
        except Exception as error:  # noqa: BLE001 - as in Guard
            if admitted:
                self._plane.leave(size)
            return self._stream_error(error, request, identity)

    async def _streamed(self, answer: Any, request: Any, identity: str) -> _Streamed:
        try:
            return await serialized(_final(await answer)), "OK", ""
        except Exception as error:  # noqa: BLE001 - as in Guard
            return self._stream_error(error, request, identity)

    def _stream_error(self, error: Exception, request: Any, identity: str) -> _Streamed:
        code, text = self._guard.failure(error, "ModelStreamInfer", identity)
        answer = messages.ModelStreamInferResponse(error_message=f"{code}: {text}")
        if request is not None:
            answer.infer_response.id = request.id
            answer.infer_response.model_name = request.model_name
            answer.infer_response.model_version = request.model_version
        return answer.SerializeToString(), code, text


def _final(response: Any) -> Any:
    response.parameters["triton_final_response"].bool_param = True
    return messages.ModelStreamInferResponse(infer_response=response)


def _has_settings(request: Any) -> bool:
    return len(request.settings) > 0


def _named(start: bytes | memoryview) -> str:
    known = model_of(start)
    return "" if known is None else known[0][:128]


def _check_repository(name: str) -> None:
    if name:
        raise RequestError(f"repository_name is {name[:128]!r}; the one repository here has no name")
