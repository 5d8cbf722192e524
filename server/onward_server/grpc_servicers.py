"""The gRPC services: each method converts, awaits the data plane, and converts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, final

import grpc

from onward_protos import cross_check_pb2 as checks
from onward_protos import grpc_service_pb2 as messages
from onward_server.access import AccessLog, request_id
from onward_server.dataplane import DataPlane
from onward_server.dataplane.overrides import override_from
from onward_server.errors import ModelNotFoundError, ModelUnavailableError, RequestError
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
from onward_server.grpc_guard import Guard, Method, deadline_of, serialized
from onward_server.server_metadata import extensions, server_version
from onward_server.statuses import public_reason

__all__ = ["CROSS_CHECK_SERVICE", "INFERENCE_SERVICE", "handlers"]

INFERENCE_SERVICE: str = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
CROSS_CHECK_SERVICE: str = checks.DESCRIPTOR.services_by_name["CrossCheckService"].full_name


def handlers(plane: DataPlane, log: AccessLog) -> list[Any]:
    """The generic handlers of every service over a data plane."""
    guard = Guard(plane, log)
    service = _Inference(plane, guard, log)
    methods = {
        "ServerLive": Method(service.server_live, messages.ServerLiveRequest, "nothing"),
        "ServerReady": Method(service.server_ready, messages.ServerReadyRequest, "nothing"),
        "ModelReady": Method(service.model_ready, messages.ModelReadyRequest, "nothing"),
        "ServerMetadata": Method(service.server_metadata, messages.ServerMetadataRequest, "read"),
        "ModelMetadata": Method(service.model_metadata, messages.ModelMetadataRequest, "read"),
        "ModelConfig": Method(service.model_config, messages.ModelConfigRequest, "read"),
        "ModelStatistics": Method(service.model_statistics, messages.ModelStatisticsRequest, "read"),
        "RepositoryIndex": Method(service.repository_index, messages.RepositoryIndexRequest, "read"),
        "ModelInfer": Method(service.model_infer, messages.ModelInferRequest, "predict", counted=True),
        "RepositoryModelLoad": Method(service.load, messages.RepositoryModelLoadRequest, "manage"),
        "RepositoryModelUnload": Method(service.unload, messages.RepositoryModelUnloadRequest, "manage"),
    }
    streams = {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(service.stream)}
    check_methods = {"GetStatistics": Method(service.check_counts, checks.GetStatisticsRequest, "read")}
    return [
        guard.handler(INFERENCE_SERVICE, methods, streams),
        guard.handler(CROSS_CHECK_SERVICE, check_methods, {}),
    ]


@final
class _Inference:
    def __init__(self, plane: DataPlane, guard: Guard, log: AccessLog) -> None:
        self._plane = plane
        self._guard = guard
        self._log = log

    async def server_live(self, request: Any, deadline: float | None) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any, deadline: float | None) -> Any:
        return messages.ServerReadyResponse(ready=self._plane.ready)

    async def model_ready(self, request: Any, deadline: float | None) -> Any:
        try:
            self._plane.model(request.name, request.version)
        except (ModelNotFoundError, ModelUnavailableError):
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=self._plane.ready)

    async def server_metadata(self, request: Any, deadline: float | None) -> Any:
        return messages.ServerMetadataResponse(
            name="onward", version=server_version(), extensions=extensions(self._plane.settings)
        )

    async def model_metadata(self, request: Any, deadline: float | None) -> Any:
        model = self._plane.model(request.name, request.version)
        return model_metadata(model, self._plane.versions(model.name))

    async def model_config(self, request: Any, deadline: float | None) -> Any:
        model = self._plane.model(request.name, request.version)
        return messages.ModelConfigResponse(config=model_config(model, self._plane.versions(model.name)))

    async def model_statistics(self, request: Any, deadline: float | None) -> Any:
        models = self._plane.select(request.name, request.version)
        return messages.ModelStatisticsResponse(model_stats=map(infer_statistics, models))

    async def repository_index(self, request: Any, deadline: float | None) -> Any:
        _check_repository(request.repository_name)
        response = messages.RepositoryIndexResponse()
        for name, version, state, reason in self._plane.states(ready_only=request.ready):
            response.models.add(
                name=name, version=str(version or ""), state=state, reason=public_reason(reason)
            )
        return response

    async def load(self, request: Any, deadline: float | None) -> Any:
        _check_repository(request.repository_name)
        parameters = {}
        for name, value in request.parameters.items():
            kind = value.WhichOneof("parameter_choice")
            if kind is not None:
                parameters[name] = getattr(value, kind)
        await self._plane.load(request.model_name, override_from(parameters))
        return messages.RepositoryModelLoadResponse()

    async def unload(self, request: Any, deadline: float | None) -> Any:
        _check_repository(request.repository_name)
        await self._plane.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    async def check_counts(self, request: Any, deadline: float | None) -> Any:
        models = self._plane.select(request.model_name, request.model_version)
        return checks.GetStatisticsResponse(statistics=map(check_statistics, models))

    async def model_infer(self, request: Any, deadline: float | None) -> Any:
        limits = self._plane.settings.limits
        if is_quick_to_decode(request):
            neutral = infer_request(request, limits, deadline)
        else:
            neutral = await asyncio.to_thread(infer_request, request, limits, deadline)
        answer = await self._plane.infer(neutral)
        if is_large(answer):
            return await asyncio.to_thread(infer_response, answer)
        return infer_response(answer)

    async def stream(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        """Answers in the order of the requests. An error is an answer too, and the stream goes on, unless the
        metadata `triton_grpc_error: true` asks for the stream to end with it.
        """
        start = time.perf_counter()
        name = f"{INFERENCE_SERVICE}/ModelStreamInfer"
        key = ""
        queue: asyncio.Queue[asyncio.Task[tuple[bytes, str, str]] | None] = asyncio.Queue(
            self._plane.settings.limits.stream_requests
        )
        reader: asyncio.Task[None] | None = None
        try:
            deadline = deadline_of(context)
            metadata, key = self._guard.authorized(context, "predict")
        except Exception as error:  # noqa: BLE001 - as in Guard
            await context.abort(*_status(self._guard.failure(error, name, request_id(""))))
            return
        identity = request_id(metadata.get("x-request-id", ""))
        ends_with_errors = metadata.get("triton_grpc_error", "").lower() in ("true", "1")

        async def read() -> None:
            async for data in requests:
                # reading stops here while too much is unanswered
                task = asyncio.get_running_loop().create_task(self._streamed(data, deadline, identity))
                await queue.put(task)
            await queue.put(None)

        reader = asyncio.get_running_loop().create_task(read())
        current: asyncio.Task[tuple[bytes, str, str]] | None = None
        try:
            while (current := await queue.get()) is not None:
                answer, code, text = await current
                if code != "OK" and ends_with_errors:
                    await context.abort(grpc.StatusCode[code], text)
                yield answer
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.QueueEmpty):
                while True:
                    waiting = queue.get_nowait()
                    if waiting is not None:
                        waiting.cancel()
            if current is not None:
                current.cancel()
            self._log.write(transport="grpc", call=name, code="OK", start=start, identity=identity, key=key)

    async def _streamed(self, data: bytes, deadline: float | None, identity: str) -> tuple[bytes, str, str]:
        request: Any = None
        try:
            with self._plane.admitted(len(data)):
                request = self._guard.read(messages.ModelInferRequest, data)
                response = await self.model_infer(request, deadline)
                response.parameters["triton_final_response"].bool_param = True
                answer = messages.ModelStreamInferResponse(infer_response=response)
                return await serialized(answer), "OK", ""
        except Exception as error:  # noqa: BLE001 - as in Guard
            code, text = self._guard.failure(error, "ModelStreamInfer", identity)
            answer = messages.ModelStreamInferResponse(error_message=f"{code}: {text}")
            if request is not None:
                answer.infer_response.id = request.id
                answer.infer_response.model_name = request.model_name
                answer.infer_response.model_version = request.model_version
            return answer.SerializeToString(), code, text


def _status(failure: tuple[str, str]) -> tuple[grpc.StatusCode, str]:
    return grpc.StatusCode[failure[0]], failure[1]


def _check_repository(name: str) -> None:
    if name:
        raise RequestError(f"repository_name is {name[:128]!r}; the one repository here has no name")
