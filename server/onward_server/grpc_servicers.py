"""The gRPC services: each method converts, awaits the data plane, and converts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import grpc

from onward_protos import cross_check_pb2, cross_check_pb2_grpc, grpc_service_pb2, grpc_service_pb2_grpc
from onward_server.dataplane import DataPlane
from onward_server.errors import ModelNotFoundError, ModelUnavailableError
from onward_server.grpc_convert import (
    check_statistics,
    decode_inputs,
    encode_answer,
    infer_statistics,
    is_quick_to_decode,
    model_config,
    model_metadata,
    requested_outputs,
)
from onward_server.grpc_status import guarded
from onward_server.settings import ServerSettings

__all__ = ["CrossCheckServicer", "InferenceServicer"]

_EXTENSIONS = ("model_configuration", "model_repository(index)", "statistics", "onward.v1.cross_check")


class InferenceServicer(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The Open Inference Protocol over a data plane; rpcs without a method here answer UNIMPLEMENTED."""

    def __init__(self, plane: DataPlane, settings: ServerSettings) -> None:
        self._plane = plane
        self._settings = settings

    @guarded
    async def ServerLive(  # noqa: N802
        self, request: grpc_service_pb2.ServerLiveRequest, context: grpc.aio.ServicerContext
    ) -> grpc_service_pb2.ServerLiveResponse:
        return grpc_service_pb2.ServerLiveResponse(live=True)

    @guarded
    async def ServerReady(  # noqa: N802
        self, request: grpc_service_pb2.ServerReadyRequest, context: grpc.aio.ServicerContext
    ) -> grpc_service_pb2.ServerReadyResponse:
        return grpc_service_pb2.ServerReadyResponse(ready=self._plane.ready)

    @guarded
    async def ModelReady(  # noqa: N802
        self, request: grpc_service_pb2.ModelReadyRequest, context: grpc.aio.ServicerContext
    ) -> grpc_service_pb2.ModelReadyResponse:
        try:
            self._plane.model(request.name, request.version)
        except (ModelNotFoundError, ModelUnavailableError):
            return grpc_service_pb2.ModelReadyResponse(ready=False)
        return grpc_service_pb2.ModelReadyResponse(ready=self._plane.ready)

    @guarded
    async def ServerMetadata(  # noqa: N802
        self, request: grpc_service_pb2.ServerMetadataRequest, context: grpc.aio.ServicerContext
    ) -> grpc_service_pb2.ServerMetadataResponse:
        return grpc_service_pb2.ServerMetadataResponse(
            name="onward", version=_version(), extensions=_EXTENSIONS
        )

    @guarded
    async def ModelMetadata(  # noqa: N802
        self, request: grpc_service_pb2.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> grpc_service_pb2.ModelMetadataResponse:
        model = self._plane.model(request.name, request.version)
        return model_metadata(model, self._plane.versions(model.name))

    @guarded
    async def ModelConfig(  # noqa: N802
        self, request: grpc_service_pb2.ModelConfigRequest, context: grpc.aio.ServicerContext
    ) -> grpc_service_pb2.ModelConfigResponse:
        model = self._plane.model(request.name, request.version)
        config = model_config(model, self._settings.executor_threads, self._plane.versions(model.name))
        return grpc_service_pb2.ModelConfigResponse(config=config)

    @guarded
    async def ModelInfer(  # noqa: N802
        self, request: grpc_service_pb2.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> grpc_service_pb2.ModelInferResponse:
        with self._plane.admitted():
            model = self._plane.model(request.model_name, request.model_version)
            outputs = requested_outputs(request)
            if is_quick_to_decode(request):
                inputs = decode_inputs(request)
            else:
                inputs = await self._plane.run(lambda: decode_inputs(request))
            answer = await self._plane.infer(model, inputs, outputs)
            return encode_answer(request, model, answer)

    @guarded
    async def ModelStatistics(  # noqa: N802
        self, request: grpc_service_pb2.ModelStatisticsRequest, context: grpc.aio.ServicerContext
    ) -> grpc_service_pb2.ModelStatisticsResponse:
        models = self._plane.select(request.name, request.version)
        return grpc_service_pb2.ModelStatisticsResponse(model_stats=map(infer_statistics, models))

    @guarded
    async def RepositoryIndex(  # noqa: N802
        self, request: grpc_service_pb2.RepositoryIndexRequest, context: grpc.aio.ServicerContext
    ) -> grpc_service_pb2.RepositoryIndexResponse:
        response = grpc_service_pb2.RepositoryIndexResponse()
        for model in self._plane.select():
            response.models.add(name=model.name, version=str(model.version), state="READY")
        if not request.ready:
            for (name, number), problem in sorted(self._plane.problems.items()):
                response.models.add(name=name, version=str(number or ""), state="UNAVAILABLE", reason=problem)
        return response


class CrossCheckServicer(cross_check_pb2_grpc.CrossCheckServiceServicer):  # type: ignore[misc]
    """What the cross-checks found."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    @guarded
    async def GetStatistics(  # noqa: N802
        self, request: cross_check_pb2.GetStatisticsRequest, context: grpc.aio.ServicerContext
    ) -> cross_check_pb2.GetStatisticsResponse:
        models = self._plane.select(request.model_name, request.model_version)
        return cross_check_pb2.GetStatisticsResponse(statistics=map(check_statistics, models))


def _version() -> str:
    try:
        return version("onward")
    except PackageNotFoundError:
        return "unknown"
