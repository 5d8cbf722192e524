"""The gRPC service of training jobs: each method converts, awaits the jobs, and converts."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, final

from onward.graph import Array
from onward_protos import training_pb2 as messages
from onward_protos.tensors import TensorFormatError, decode_raw
from onward_server.access import CHANGES, AccessLog, Need, request_id
from onward_server.dataplane import DataPlane
from onward_server.errors import DeadlineError, RequestError
from onward_server.grpc_calls import Call, CallFailed, StreamMethod, UnaryMethod
from onward_server.grpc_guard import Guard, Method
from onward_server.training import Job, JobEvent, LineageRecord, Start, TrainingService
from onward_server.training.promotion import Evaluate, Promote
from onward_server.training.requests import configuration_of

__all__ = ["TRAINING_SERVICE", "training_methods"]

TRAINING_SERVICE: str = messages.DESCRIPTOR.services_by_name["Training"].full_name


def training_methods(
    service: TrainingService, plane: DataPlane, log: AccessLog
) -> tuple[dict[str, UnaryMethod], dict[str, StreamMethod]]:
    """The methods by path: unary ones, and those of streams."""
    guard = Guard(plane, log)
    calls = _Training(service, plane)
    unary = {
        "Start": Method(calls.start, messages.StartJobRequest, "train"),
        "List": Method(calls.list, messages.ListJobsRequest, "read"),
        "Get": Method(calls.get, messages.JobRequest, "read"),
        "Cancel": Method(calls.cancel, messages.JobRequest, "train"),
        "Resume": Method(calls.resume, messages.JobRequest, "train"),
        "Evaluate": Method(calls.evaluate, messages.EvaluateRequest, "train"),
        "Promote": Method(calls.promote, messages.PromoteRequest, "manage"),
        "Rollback": Method(calls.rollback, messages.RollbackRequest, "manage"),
        "GetLineage": Method(calls.lineage, messages.GetLineageRequest, "read"),
        "GetParameters": Method(calls.parameters, messages.GetParametersRequest, "train"),
        "SetParameters": Method(calls.set_parameters, messages.SetParametersRequest, "train"),
        "SubmitDelta": Method(calls.submit_delta, messages.SubmitDeltaRequest, "train"),
        "AverageDeltas": Method(calls.average_deltas, messages.AverageDeltasRequest, "train"),
    }
    streams = {
        "Watch": _stream(guard, log, "Watch", "read", messages.WatchJobRequest, calls.watch),
        "StartStream": _stream(
            guard, log, "StartStream", "train", messages.StartStreamRequest, calls.start_stream
        ),
    }
    return (
        {
            f"/{TRAINING_SERVICE}/{name}": guard.unary(f"{TRAINING_SERVICE}/{name}", each)
            for name, each in unary.items()
        },
        {f"/{TRAINING_SERVICE}/{name}": each for name, each in streams.items()},
    )


def _stream(
    guard: Guard,
    log: AccessLog,
    method: str,
    need: Need,
    request_type: Any,
    handler: Callable[[AsyncIterator[Any]], AsyncIterator[Any]],
) -> StreamMethod:
    """A method of streams of messages, with what `Guard.unary` does around it."""
    name = f"{TRAINING_SERVICE}/{method}"

    async def answer(call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        start = time.perf_counter()
        identity = request_id(call.metadata.get("x-request-id", ""))
        key = text = ""
        code = "OK"

        async def read() -> AsyncIterator[Any]:
            async for data in requests:
                yield guard.read(request_type, data)

        try:
            if call.deadline is not None and call.deadline <= time.monotonic():
                raise DeadlineError("the stream's deadline passed before it was begun")
            key = guard.authorized(call, need)
            async for message in handler(read()):
                yield message.SerializeToString()
        except CallFailed as error:
            code, text = error.code, error.text
            raise
        except Exception as error:  # noqa: BLE001 - as in Guard
            code, text = guard.failure(error, name, identity)
            raise CallFailed(code, text) from None
        finally:
            if log.takes(code, always=need in CHANGES):
                log.write(
                    transport="grpc", call=name, code=code, start=start, identity=identity, key=key, text=text
                )

    return answer


@final
class _Training:
    def __init__(self, service: TrainingService, plane: DataPlane) -> None:
        self._service = service
        self._plane = plane

    async def start(self, request: Any, call: Call) -> Any:
        return job_message(await self._service.start(_start(request)))

    async def start_stream(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("content") != "start":
            raise RequestError("the first message of the stream needs `start`")
        yield job_message(await self._service.start(_start(first.start), self._batches(requests)))

    async def _batches(self, requests: AsyncIterator[Any]) -> AsyncIterator[dict[str, Array]]:
        async for message in requests:
            if message.WhichOneof("content") != "batch":
                raise RequestError("each message after the first one needs `batch`")
            tensors: dict[str, Array] = {}
            for tensor in message.batch.tensors:
                if tensor.datatype in ("BYTES", "BF16"):
                    raise RequestError(
                        f"tensor {tensor.name[:128]!r}: {tensor.datatype} is no type of a sample"
                    )
                if tensor.name in tensors:
                    raise RequestError(f"tensor {tensor.name[:128]!r} is there twice")
                if len(tensor.shape) > self._plane.settings.limits.rank:
                    raise RequestError(f"tensor {tensor.name[:128]!r} has {len(tensor.shape)} dimensions")
                try:
                    tensors[tensor.name] = decode_raw(tensor.datatype, tensor.shape, tensor.raw)
                except TensorFormatError as error:
                    raise RequestError(f"tensor {tensor.name[:128]!r}: {error}") from None
            yield tensors

    async def watch(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        request = await anext(requests, None)
        if request is None:
            raise RequestError("the request is missing")
        async for event in self._service.watch(request.id, request.after):
            yield event_message(event)

    def list(self, request: Any, call: Call) -> Any:
        jobs = self._service.jobs(request.state, request.limit)
        return messages.ListJobsResponse(jobs=map(job_message, jobs))

    def get(self, request: Any, call: Call) -> Any:
        return job_message(self._service.get(request.id))

    async def cancel(self, request: Any, call: Call) -> Any:
        return job_message(await self._service.cancel(request.id))

    async def resume(self, request: Any, call: Call) -> Any:
        return job_message(await self._service.resume(request.id))

    async def evaluate(self, request: Any, call: Call) -> Any:
        found = await self._service.promotions.evaluate(
            Evaluate(request.id, request.model, request.version, request.data, request.part or "test")
        )
        measures = found["measures"]
        confusion = measures.get("confusion_matrix", [])
        return messages.Evaluation(
            figures={name: value for name, value in measures.items() if isinstance(value, float)},
            samples=measures["samples"],
            confusion=[count for row in confusion for count in row],
            classes=measures.get("classes", []),
            cross_check=messages.CheckResult(
                passed=found["passed"],
                max_absolute_error=found["max_absolute_error"] or 0.0,
                difference=found["difference"],
            ),
        )

    async def promote(self, request: Any, call: Call) -> Any:
        found = await self._service.promotions.promote(
            Promote(
                request.id,
                request.model,
                dict(request.at_least),
                dict(request.at_most),
                request.allow_other_interface,
            )
        )
        return lineage_message(found)

    async def rollback(self, request: Any, call: Call) -> Any:
        withdrawn, serving = await self._service.promotions.rollback(request.model)
        return messages.RollbackResponse(model=request.model, withdrawn=str(withdrawn), serving=str(serving))

    async def lineage(self, request: Any, call: Call) -> Any:
        found = await self._service.promotions.lineage(request.model, request.version)
        return messages.GetLineageResponse(versions=map(lineage_message, found))

    async def parameters(self, request: Any, call: Call) -> Any:
        found = await self._service.federation.parameters(request.model, request.version)
        return messages.Parameters(
            model=found.layout.model,
            version=str(found.layout.version),
            entries=[{"name": name, "shape": shape} for name, shape in found.layout.entries],
            buffer=found.buffer,
        )

    async def set_parameters(self, request: Any, call: Call) -> Any:
        return job_message(
            await self._service.federation.set(request.model, request.version, request.buffer, request.title)
        )

    async def submit_delta(self, request: Any, call: Call) -> Any:
        count, weight = await self._service.federation.submit(
            request.model,
            request.version,
            request.round,
            request.contributor,
            request.weight,
            request.buffer,
        )
        return messages.SubmitDeltaResponse(contributors=count, weight=weight)

    async def average_deltas(self, request: Any, call: Call) -> Any:
        return job_message(
            await self._service.federation.average(
                request.model, request.version, request.round, request.at_least, request.title
            )
        )


def _start(request: Any) -> Start:
    form = request.WhichOneof("configuration")
    if form is None:
        raise RequestError("configuration: give json or toml")
    configuration = configuration_of(getattr(request, form), form)
    return Start(configuration, request.model, request.version, request.title)


def job_message(job: Job) -> Any:
    """A job as its message."""
    names = ("id", "state", "title", "reason", "configuration", "parent_model", "created", "started", "ended")
    more = ("epoch", "epochs", "step", "figures", "resumable", "last_event", "sha256", "data_hash")
    fields = {name: getattr(job, name) for name in (*names, *more)}
    return messages.Job(parent_version=str(job.parent_version or ""), **fields)


def event_message(event: JobEvent) -> Any:
    """An event as its message."""
    return messages.JobEvent(
        sequence=event.sequence, time=event.time, kind=event.kind, json=json.dumps(event.fields)
    )


def lineage_message(entry: LineageRecord) -> Any:
    """Where a version comes from, as its message."""
    names = ("model", "job", "parent_model", "data_hash", "configuration", "metrics", "sha256", "promoted")
    return messages.Lineage(
        version=str(entry.version),
        parent_version=str(entry.parent_version or ""),
        withdrawn=entry.withdrawn,
        cross_check=messages.CheckResult(passed=True, max_absolute_error=entry.max_absolute_error),
        **{name: getattr(entry, name) for name in names},
    )
