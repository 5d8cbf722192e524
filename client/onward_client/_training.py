"""Training jobs of an Onward server: its calls as conversations, and their two faces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, final

import numpy as np

from onward_client._conversations import Call, Conversation, later, now, one
from onward_client._values import array_of, encode_input
from onward_client.errors import ClientError, InvalidRequestError, JobNotFoundError, ModelNotFoundError
from onward_client.types import (
    Array,
    ModelLineage,
    ModelParameters,
    TrainingEvaluation,
    TrainingEvent,
    TrainingJob,
)
from onward_protos import training_pb2

__all__ = ["AsyncTraining", "Training"]

_T = TypeVar("_T")
_SERVICE = "/onward.v1.Training/"

Configuration: TypeAlias = Mapping[str, Any] | str
"""A run as `onward train --config` takes it: JSON values, or TOML text."""
Batch: TypeAlias = Mapping[str, Array]
"""Samples: arrays by name with the same first extent; the target is `y`, or what `data.target` names."""


@final
class TrainingCalls:
    """The methods that both faces have."""

    def start(
        self,
        configuration: Configuration,
        *,
        model: str = "",
        version: str = "",
        title: str = "",
        batches: Iterable[Batch] | AsyncIterable[Batch] | None = None,
        timeout: float | None = None,
    ) -> Conversation[TrainingJob]:
        """Put a job into the queue.

        Args:
            configuration: the run, without what the server decides.
            model, version: of the repository, to train further; empty: a network of the zoo, the newest.
            title: for people.
            batches: the data, from an asynchronous iterator where the client is; None: they are where the
                configuration says.
            timeout: seconds; None: the client's.
        """
        request = _start(configuration, model, version, title)
        if batches is None:
            return _ask("Start", request, training_pb2.Job, _job, timeout, ModelNotFoundError)
        first = training_pb2.StartStreamRequest(start=request)
        subject = "StartStream of training"
        call = Call(f"{_SERVICE}StartStream", first, training_pb2.Job, subject, further=_messages(batches))
        return one(call, _job, timeout)

    def list(
        self, state: str = "", limit: int = 0, timeout: float | None = None
    ) -> Conversation[tuple[TrainingJob, ...]]:
        """Jobs, the newest first; of one state if it is given."""
        request = training_pb2.ListJobsRequest(state=state, limit=limit)
        return _ask("List", request, training_pb2.ListJobsResponse, _jobs, timeout)

    def get(self, job: str, timeout: float | None = None) -> Conversation[TrainingJob]:
        """One job."""
        return _ask("Get", training_pb2.JobRequest(id=job), training_pb2.Job, _job, timeout)

    def cancel(self, job: str, timeout: float | None = None) -> Conversation[TrainingJob]:
        """Ask a job to stop after its step; it keeps a checkpoint."""
        return _ask("Cancel", training_pb2.JobRequest(id=job), training_pb2.Job, _job, timeout)

    def resume(self, job: str, timeout: float | None = None) -> Conversation[TrainingJob]:
        """Queue a cancelled or failed job again, from its last checkpoint."""
        return _ask("Resume", training_pb2.JobRequest(id=job), training_pb2.Job, _job, timeout)

    def evaluate(
        self,
        job: str = "",
        *,
        model: str = "",
        version: str = "",
        data: str = "",
        part: str = "test",
        timeout: float | None = None,
    ) -> Conversation[TrainingEvaluation]:
        """Measure a job's model, or a version of the repository, and compare it with onnxruntime."""
        if bool(job) == bool(model):
            raise InvalidRequestError("give a job or a model")
        subject: dict[str, Any] = {"id": job} if job else {"model": model}
        request = training_pb2.EvaluateRequest(version=version, data=data, part=part, **subject)
        missing = JobNotFoundError if job else ModelNotFoundError
        return _ask("Evaluate", request, training_pb2.Evaluation, _evaluation, timeout, missing)

    def promote(
        self,
        job: str,
        model: str = "",
        *,
        at_least: Mapping[str, float] | None = None,
        at_most: Mapping[str, float] | None = None,
        allow_other_interface: bool = False,
        timeout: float | None = None,
    ) -> Conversation[ModelLineage]:
        """Serve what a job has trained as the newest version of a model.

        Args:
            job: its id.
            model: the name to serve it as; empty: the one that was trained further.
            at_least, at_most: figures that have to be at least, or at most, so much.
            allow_other_interface: also where inputs or outputs are not those that are served now.
            timeout: seconds; None: the client's.
        """
        request = training_pb2.PromoteRequest(
            id=job,
            model=model,
            at_least=at_least or {},
            at_most=at_most or {},
            allow_other_interface=allow_other_interface,
        )
        return _ask("Promote", request, training_pb2.Lineage, _lineage, timeout)

    def rollback(self, model: str, timeout: float | None = None) -> Conversation[tuple[str, str]]:
        """Withdraw the newest version of a model; that version, and the one that answers now."""
        request = training_pb2.RollbackRequest(model=model)
        kind = training_pb2.RollbackResponse
        return _ask("Rollback", request, kind, _versions, timeout, ModelNotFoundError)

    def lineage(
        self, model: str, version: str = "", timeout: float | None = None
    ) -> Conversation[tuple[ModelLineage, ...]]:
        """Where the versions of a model come from, the newest first."""
        request = training_pb2.GetLineageRequest(model=model, version=version)
        kind = training_pb2.GetLineageResponse
        return _ask("GetLineage", request, kind, _lineages, timeout, ModelNotFoundError)

    def parameters(
        self, model: str, version: str = "", timeout: float | None = None
    ) -> Conversation[ModelParameters]:
        """The parameters of a version, running statistics included."""
        request = training_pb2.GetParametersRequest(model=model, version=version)
        kind = training_pb2.Parameters
        return _ask("GetParameters", request, kind, _parameters, timeout, ModelNotFoundError)

    def set_parameters(
        self, model: str, version: str, values: Array, *, title: str = "", timeout: float | None = None
    ) -> Conversation[TrainingJob]:
        """A version with other parameters, flat as `parameters` gives them: a job that can be promoted."""
        request = training_pb2.SetParametersRequest(
            model=model, version=version, buffer=_flat(values), title=title
        )
        return _ask("SetParameters", request, training_pb2.Job, _job, timeout, ModelNotFoundError)

    def submit_delta(
        self,
        model: str,
        version: str,
        delta: Array,
        *,
        round: str,  # noqa: A002 - what federated training calls it
        contributor: str,
        weight: float,
        timeout: float | None = None,
    ) -> Conversation[tuple[int, float]]:
        """Give what one's parameters differ by from a version's; again replaces it.

        Args:
            model, version: what was trained from.
            delta: float32, flat as `parameters` gives them.
            round: what belongs together.
            contributor: who gives it.
            weight: such as the count of samples.
            timeout: seconds; None: the client's.

        Returns:
            How many contributors the round has, and the sum of their weights.
        """
        request = training_pb2.SubmitDeltaRequest(
            model=model,
            version=version,
            round=round,
            contributor=contributor,
            weight=weight,
            buffer=_flat(delta),
        )
        kind = training_pb2.SubmitDeltaResponse
        return _ask("SubmitDelta", request, kind, _contributions, timeout, ModelNotFoundError)

    def average_deltas(
        self,
        model: str,
        version: str,
        *,
        round: str,  # noqa: A002 - as above
        at_least: int = 1,
        title: str = "",
        timeout: float | None = None,
    ) -> Conversation[TrainingJob]:
        """The version plus the weighted mean of a round's deltas: a job that can be promoted."""
        request = training_pb2.AverageDeltasRequest(
            model=model, version=version, round=round, at_least=at_least, title=title
        )
        return _ask("AverageDeltas", request, training_pb2.Job, _job, timeout, ModelNotFoundError)


class _Client(Protocol):
    def _run(self, conversation: Conversation[_T]) -> _T: ...

    def _watch(self, call: Call, timeout: float | None) -> Iterator[Any]: ...


class _AsyncClient(Protocol):
    async def _run(self, conversation: Conversation[_T]) -> _T: ...

    def _watch(self, call: Call, timeout: float | None) -> AsyncIterator[Any]: ...


@final
class Training:
    """The training jobs of a server; from `Client.training`.

    Every method raises InvalidRequestError, JobNotFoundError, ModelNotFoundError, OverloadedError,
    AuthenticationError (without the role), or another ClientError.
    """

    def __init__(self, client: _Client) -> None:
        self._asks = TrainingCalls()
        self._client = client

    def _run(self, conversation: Conversation[_T]) -> _T:
        return self._client._run(conversation)

    def watch(self, job: str, after: int = 0, timeout: float | None = None) -> Iterator[TrainingEvent]:
        """The events of a job after a known one, until it has ended; timeout None: however long it takes."""
        for event in self._client._watch(_watch(job, after), timeout):
            yield _event(event)

    start = now(TrainingCalls.start)
    list = now(TrainingCalls.list)
    get = now(TrainingCalls.get)
    cancel = now(TrainingCalls.cancel)
    resume = now(TrainingCalls.resume)
    evaluate = now(TrainingCalls.evaluate)
    promote = now(TrainingCalls.promote)
    rollback = now(TrainingCalls.rollback)
    lineage = now(TrainingCalls.lineage)
    parameters = now(TrainingCalls.parameters)
    set_parameters = now(TrainingCalls.set_parameters)
    submit_delta = now(TrainingCalls.submit_delta)
    average_deltas = now(TrainingCalls.average_deltas)


@final
class AsyncTraining:
    """The training jobs of a server; from `AsyncClient.training`. The methods of `Training`, with `await`."""

    def __init__(self, client: _AsyncClient) -> None:
        self._asks = TrainingCalls()
        self._client = client

    async def _run(self, conversation: Conversation[_T]) -> _T:
        return await self._client._run(conversation)

    async def watch(
        self, job: str, after: int = 0, timeout: float | None = None
    ) -> AsyncIterator[TrainingEvent]:
        """The events of a job after a known one, until it has ended; timeout None: however long it takes."""
        async for event in self._client._watch(_watch(job, after), timeout):
            yield _event(event)

    start = later(TrainingCalls.start)
    list = later(TrainingCalls.list)
    get = later(TrainingCalls.get)
    cancel = later(TrainingCalls.cancel)
    resume = later(TrainingCalls.resume)
    evaluate = later(TrainingCalls.evaluate)
    promote = later(TrainingCalls.promote)
    rollback = later(TrainingCalls.rollback)
    lineage = later(TrainingCalls.lineage)
    parameters = later(TrainingCalls.parameters)
    set_parameters = later(TrainingCalls.set_parameters)
    submit_delta = later(TrainingCalls.submit_delta)
    average_deltas = later(TrainingCalls.average_deltas)


def _ask(
    method: str,
    request: Any,
    response_type: Any,
    convert: Callable[[Any], _T],
    timeout: float | None,
    missing: type[ClientError] = JobNotFoundError,
) -> Conversation[_T]:
    call = Call(_SERVICE + method, request, response_type, f"{method} of training", missing=missing)
    return one(call, convert, timeout)


def _watch(job: str, after: int) -> Call:
    request = training_pb2.WatchJobRequest(id=job, after=after)
    return Call(
        f"{_SERVICE}Watch", request, training_pb2.JobEvent, f"events of {job!r}", missing=JobNotFoundError
    )


def _start(configuration: Configuration, model: str, version: str, title: str) -> Any:
    request = training_pb2.StartJobRequest(model=model, version=version, title=title)
    if isinstance(configuration, str):
        request.toml = configuration
        return request
    try:
        request.json = json.dumps(configuration)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"configuration: {error}") from None
    return request


def _messages(batches: Iterable[Batch] | AsyncIterable[Batch]) -> Iterator[Any] | AsyncIterator[Any]:
    if not isinstance(batches, AsyncIterable):
        return map(_batch, batches)

    async def messages() -> AsyncIterator[Any]:
        async for batch in batches:
            yield _batch(batch)

    return messages()


def _batch(batch: Batch) -> Any:
    message = training_pb2.StartStreamRequest(batch=training_pb2.Batch())
    for name, value in batch.items():
        datatype, array = array_of(name, np.asarray(value), "")
        message.batch.tensors.add(
            name=name, datatype=datatype, shape=array.shape, raw=encode_input(name, datatype, array)
        )
    return message


def _flat(values: Array) -> bytes:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind != "f":
        raise InvalidRequestError(f"give floats in one dimension, not {array.dtype} {list(array.shape)}")
    return array.astype("<f4").tobytes()


def _job(found: Any) -> TrainingJob:
    return TrainingJob(
        found.id,
        found.state,
        found.title,
        found.reason,
        found.configuration,
        found.parent_model,
        found.parent_version,
        found.created,
        found.started,
        found.ended,
        found.epoch,
        found.epochs,
        found.step,
        dict(found.figures),
        found.resumable,
        found.sha256,
        found.data_hash,
        found.last_event,
    )


def _jobs(found: Any) -> tuple[TrainingJob, ...]:
    return tuple(map(_job, found.jobs))


def _event(found: Any) -> TrainingEvent:
    return TrainingEvent(found.sequence, found.time, found.kind, json.loads(found.json))


def _evaluation(found: Any) -> TrainingEvaluation:
    confusion = None
    if found.confusion:
        side = round(len(found.confusion) ** 0.5)
        confusion = np.array(found.confusion, np.int64).reshape(side, side)
    check = found.cross_check
    return TrainingEvaluation(
        dict(found.figures),
        found.samples,
        tuple(found.classes),
        confusion,
        check.passed,
        check.max_absolute_error,
        check.difference,
    )


def _lineage(found: Any) -> ModelLineage:
    check = found.cross_check
    return ModelLineage(
        found.model,
        found.version,
        found.job,
        found.parent_model,
        found.parent_version,
        found.data_hash,
        found.configuration,
        dict(found.metrics),
        found.sha256,
        found.promoted,
        found.withdrawn,
        check.passed,
        check.max_absolute_error,
        check.difference,
    )


def _lineages(found: Any) -> tuple[ModelLineage, ...]:
    return tuple(map(_lineage, found.versions))


def _versions(found: Any) -> tuple[str, str]:
    return found.withdrawn, found.serving


def _contributions(found: Any) -> tuple[int, float]:
    return found.contributors, found.weight


def _parameters(found: Any) -> ModelParameters:
    return ModelParameters(
        found.model,
        found.version,
        tuple(entry.name for entry in found.entries),
        tuple(tuple(entry.shape) for entry in found.entries),
        np.frombuffer(found.buffer, "<f4").copy(),
    )
