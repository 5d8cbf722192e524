"""Training jobs of an Onward server: what both clients do, and what they return."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, final

import numpy as np

from onward_client._calls import Call, Conversation
from onward_client._values import array_of, encode_input
from onward_client.errors import ClientError, InvalidRequestError, JobNotFoundError, ModelNotFoundError
from onward_client.types import Array
from onward_protos import training_pb2

__all__ = [
    "AsyncTraining",
    "ModelLineage",
    "ModelParameters",
    "Training",
    "TrainingEvaluation",
    "TrainingEvent",
    "TrainingJob",
]

_T = TypeVar("_T")
_SERVICE = "/onward.v1.Training/"

Configuration: TypeAlias = Mapping[str, Any] | str
"""A run as `onward train --config` takes it: JSON values, or TOML text."""
Batch: TypeAlias = Mapping[str, Array]
"""Samples: arrays by name with the same first extent; the target is `y`, or what `data.target` names."""


@final
@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A training job.

    Attributes:
        id: what calls name it by.
        state: `queued`, `running`, `completed`, `cancelled` or `failed`.
        title: the text that it was started with.
        reason: why it stopped or failed.
        configuration: the run as TOML; `onward train --config` does the same.
        parent_model, parent_version: what is trained further; empty: a network of the zoo.
        created, started, ended: seconds since 1970; 0: not yet.
        epoch, epochs, step: how far it is.
        figures: loss and metrics, the latest of each.
        resumable: whether there is a checkpoint.
        sha256, data_hash: of the model's file, and of the data; empty before it is completed.
    """

    id: str
    state: str
    title: str
    reason: str
    configuration: str
    parent_model: str
    parent_version: str
    created: float
    started: float
    ended: float
    epoch: int
    epochs: int
    step: int
    figures: Mapping[str, float]
    resumable: bool
    sha256: str
    data_hash: str


@final
@dataclass(frozen=True, slots=True)
class TrainingEvent:
    """What happened in a job: its number from 1, seconds since 1970, kind, and the fields of that kind."""

    sequence: int
    time: float
    kind: str
    fields: Mapping[str, Any]


@final
@dataclass(frozen=True, slots=True)
class TrainingEvaluation:
    """Figures on a data set, and what a comparison with onnxruntime found.

    Attributes:
        figures: metrics by name.
        samples: how many there were.
        classes: their names.
        confusion: int64 [K, K], rows the true classes; None where there is none.
        agrees: whether the engines agree.
        max_absolute_error: the largest difference between them.
        difference: the first node or output that differs.
    """

    figures: Mapping[str, float]
    samples: int
    classes: tuple[str, ...]
    confusion: Array | None
    agrees: bool
    max_absolute_error: float
    difference: str


@final
@dataclass(frozen=True, slots=True)
class ModelLineage:
    """Where a version of a model comes from; `withdrawn` is 0 where it was not rolled back."""

    model: str
    version: str
    job: str
    parent_model: str
    parent_version: str
    data_hash: str
    configuration: str
    metrics: Mapping[str, float] = field(repr=False)
    sha256: str
    promoted: float
    withdrawn: float


@final
@dataclass(frozen=True, slots=True, eq=False)
class ModelParameters:
    """The parameters of a version.

    Attributes:
        model, version: whose.
        names, shapes: in the order of `values`.
        values: float32 [n], all of them one after the other.
    """

    model: str
    version: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    values: Array


@final
class Training:
    """The training jobs of a server; from `Client.training`.

    Every method raises InvalidRequestError, JobNotFoundError, ModelNotFoundError, OverloadedError,
    AuthenticationError (without the role), or another ClientError.
    """

    def __init__(
        self,
        run: Callable[[Conversation[Any], float | None], Any],
        watch: Callable[[Call, float | None], Iterator[Any]],
        send: Callable[[Call, Iterator[Any], float | None], Any],
    ) -> None:
        self._run = run
        self._watch = watch
        self._send = send

    def start(
        self,
        configuration: Configuration,
        *,
        model: str = "",
        version: str = "",
        title: str = "",
        batches: Iterable[Batch] | None = None,
        timeout: float | None = None,
    ) -> TrainingJob:
        """Put a job into the queue.

        Args:
            configuration: the run, without what the server decides.
            model, version: of the repository, to train further; empty: a network of the zoo, the newest.
            title: for people.
            batches: the data; None: they are where the configuration says.
            timeout: seconds; None: the client's.
        """
        request = _start(configuration, model, version, title)
        if batches is None:
            return self._run(_one("Start", request, training_pb2.Job, _job, ModelNotFoundError), timeout)
        return _job(self._send(_stream_call(), _stream(request, batches), timeout))

    def watch(self, job: str, after: int = 0, timeout: float | None = None) -> Iterator[TrainingEvent]:
        """The events of a job after a known one, until it has ended; timeout None: however long it takes."""
        for event in self._watch(_watch_call(job, after), timeout):
            yield _event(event)

    def list(self, state: str = "", limit: int = 0, timeout: float | None = None) -> tuple[TrainingJob, ...]:
        """Jobs, the newest first; of one state if it is given."""
        return self._run(_list(state, limit), timeout)

    def get(self, job: str, timeout: float | None = None) -> TrainingJob:
        """One job."""
        return self._run(_one("Get", _named(job), training_pb2.Job, _job), timeout)

    def cancel(self, job: str, timeout: float | None = None) -> TrainingJob:
        """Ask a job to stop after its step; it keeps a checkpoint."""
        return self._run(_one("Cancel", _named(job), training_pb2.Job, _job), timeout)

    def resume(self, job: str, timeout: float | None = None) -> TrainingJob:
        """Queue a cancelled or failed job again, from its last checkpoint."""
        return self._run(_one("Resume", _named(job), training_pb2.Job, _job), timeout)

    def evaluate(
        self,
        job: str = "",
        *,
        model: str = "",
        version: str = "",
        data: str = "",
        part: str = "test",
        timeout: float | None = None,
    ) -> TrainingEvaluation:
        """Measure a job's model, or a version of the repository, and compare it with onnxruntime."""
        return self._run(_evaluate(job, model, version, data, part), timeout)

    def promote(
        self,
        job: str,
        model: str = "",
        *,
        at_least: Mapping[str, float] | None = None,
        at_most: Mapping[str, float] | None = None,
        allow_other_interface: bool = False,
        timeout: float | None = None,
    ) -> ModelLineage:
        """Serve what a job has trained as the newest version of a model.

        Args:
            job: its id.
            model: the name to serve it as; empty: the one that was trained further.
            at_least, at_most: figures that have to be at least, or at most, so much.
            allow_other_interface: also where inputs or outputs are not those that are served now.
            timeout: seconds; None: the client's.
        """
        return self._run(_promote(job, model, at_least, at_most, allow_other_interface), timeout)

    def rollback(self, model: str, timeout: float | None = None) -> tuple[str, str]:
        """Withdraw the newest version of a model; that version, and the one that answers now."""
        return self._run(_rollback(model), timeout)

    def lineage(
        self, model: str, version: str = "", timeout: float | None = None
    ) -> tuple[ModelLineage, ...]:
        """Where the versions of a model come from, the newest first."""
        return self._run(_lineages(model, version), timeout)

    def parameters(self, model: str, version: str = "", timeout: float | None = None) -> ModelParameters:
        """The parameters of a version, running statistics included."""
        return self._run(_parameters(model, version), timeout)

    def set_parameters(
        self, model: str, version: str, values: Array, *, title: str = "", timeout: float | None = None
    ) -> TrainingJob:
        """A version with other parameters, flat as `parameters` gives them: a job that can be promoted."""
        return self._run(_set_parameters(model, version, values, title), timeout)

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
    ) -> tuple[int, float]:
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
        return self._run(_submit_delta(model, version, delta, round, contributor, weight), timeout)

    def average_deltas(
        self,
        model: str,
        version: str,
        *,
        round: str,  # noqa: A002 - as above
        at_least: int = 1,
        title: str = "",
        timeout: float | None = None,
    ) -> TrainingJob:
        """The version plus the weighted mean of a round's deltas: a job that can be promoted."""
        return self._run(_average_deltas(model, version, round, at_least, title), timeout)


@final
class AsyncTraining:
    """The training jobs of a server; from `AsyncClient.training`. See `Training`."""

    def __init__(
        self,
        run: Callable[[Conversation[Any], float | None], Awaitable[Any]],
        watch: Callable[[Call, float | None], AsyncIterator[Any]],
        send: Callable[[Call, AsyncIterator[Any], float | None], Awaitable[Any]],
    ) -> None:
        self._run = run
        self._watch = watch
        self._send = send

    async def start(
        self,
        configuration: Configuration,
        *,
        model: str = "",
        version: str = "",
        title: str = "",
        batches: Iterable[Batch] | AsyncIterable[Batch] | None = None,
        timeout: float | None = None,
    ) -> TrainingJob:
        """Put a job into the queue. See `Training.start`."""
        request = _start(configuration, model, version, title)
        if batches is None:
            return await self._run(
                _one("Start", request, training_pb2.Job, _job, ModelNotFoundError), timeout
            )
        return _job(await self._send(_stream_call(), _async_stream(request, batches), timeout))

    async def watch(
        self, job: str, after: int = 0, timeout: float | None = None
    ) -> AsyncIterator[TrainingEvent]:
        """The events of a job after a known one, until it has ended; timeout None: however long it takes."""
        async for event in self._watch(_watch_call(job, after), timeout):
            yield _event(event)

    async def list(
        self, state: str = "", limit: int = 0, timeout: float | None = None
    ) -> tuple[TrainingJob, ...]:
        """Jobs, the newest first; of one state if it is given."""
        return await self._run(_list(state, limit), timeout)

    async def get(self, job: str, timeout: float | None = None) -> TrainingJob:
        """One job."""
        return await self._run(_one("Get", _named(job), training_pb2.Job, _job), timeout)

    async def cancel(self, job: str, timeout: float | None = None) -> TrainingJob:
        """Ask a job to stop after its step; it keeps a checkpoint."""
        return await self._run(_one("Cancel", _named(job), training_pb2.Job, _job), timeout)

    async def resume(self, job: str, timeout: float | None = None) -> TrainingJob:
        """Queue a cancelled or failed job again, from its last checkpoint."""
        return await self._run(_one("Resume", _named(job), training_pb2.Job, _job), timeout)

    async def evaluate(
        self,
        job: str = "",
        *,
        model: str = "",
        version: str = "",
        data: str = "",
        part: str = "test",
        timeout: float | None = None,
    ) -> TrainingEvaluation:
        """Measure a job's model, or a version of the repository, and compare it with onnxruntime."""
        return await self._run(_evaluate(job, model, version, data, part), timeout)

    async def promote(
        self,
        job: str,
        model: str = "",
        *,
        at_least: Mapping[str, float] | None = None,
        at_most: Mapping[str, float] | None = None,
        allow_other_interface: bool = False,
        timeout: float | None = None,
    ) -> ModelLineage:
        """Serve what a job has trained as the newest version of a model. See `Training.promote`."""
        return await self._run(_promote(job, model, at_least, at_most, allow_other_interface), timeout)

    async def rollback(self, model: str, timeout: float | None = None) -> tuple[str, str]:
        """Withdraw the newest version of a model; that version, and the one that answers now."""
        return await self._run(_rollback(model), timeout)

    async def lineage(
        self, model: str, version: str = "", timeout: float | None = None
    ) -> tuple[ModelLineage, ...]:
        """Where the versions of a model come from, the newest first."""
        return await self._run(_lineages(model, version), timeout)

    async def parameters(
        self, model: str, version: str = "", timeout: float | None = None
    ) -> ModelParameters:
        """The parameters of a version, running statistics included."""
        return await self._run(_parameters(model, version), timeout)

    async def set_parameters(
        self, model: str, version: str, values: Array, *, title: str = "", timeout: float | None = None
    ) -> TrainingJob:
        """A version with other parameters, flat as `parameters` gives them: a job that can be promoted."""
        return await self._run(_set_parameters(model, version, values, title), timeout)

    async def submit_delta(
        self,
        model: str,
        version: str,
        delta: Array,
        *,
        round: str,  # noqa: A002 - what federated training calls it
        contributor: str,
        weight: float,
        timeout: float | None = None,
    ) -> tuple[int, float]:
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
        return await self._run(_submit_delta(model, version, delta, round, contributor, weight), timeout)

    async def average_deltas(
        self,
        model: str,
        version: str,
        *,
        round: str,  # noqa: A002 - as above
        at_least: int = 1,
        title: str = "",
        timeout: float | None = None,
    ) -> TrainingJob:
        """The version plus the weighted mean of a round's deltas: a job that can be promoted."""
        return await self._run(_average_deltas(model, version, round, at_least, title), timeout)


def _one(
    method: str,
    request: Any,
    response_type: Any,
    convert: Callable[[Any], _T],
    missing: type[ClientError] = JobNotFoundError,
) -> Conversation[_T]:
    response = yield Call(_SERVICE + method, request, response_type, f"{method} of training", missing=missing)
    return convert(response)


def _list(state: str, limit: int) -> Conversation[tuple[TrainingJob, ...]]:
    request = training_pb2.ListJobsRequest(state=state, limit=limit)
    return _one("List", request, training_pb2.ListJobsResponse, lambda found: tuple(map(_job, found.jobs)))


def _evaluate(job: str, model: str, version: str, data: str, part: str) -> Conversation[TrainingEvaluation]:
    if bool(job) == bool(model):
        raise InvalidRequestError("give a job or a model")
    subject: dict[str, Any] = {"id": job} if job else {"model": model}
    request = training_pb2.EvaluateRequest(version=version, data=data, part=part, **subject)
    return _one(
        "Evaluate",
        request,
        training_pb2.Evaluation,
        _evaluation,
        JobNotFoundError if job else ModelNotFoundError,
    )


def _promote(
    job: str,
    model: str,
    at_least: Mapping[str, float] | None,
    at_most: Mapping[str, float] | None,
    allow_other_interface: bool,
) -> Conversation[ModelLineage]:
    request = training_pb2.PromoteRequest(
        id=job,
        model=model,
        at_least=at_least or {},
        at_most=at_most or {},
        allow_other_interface=allow_other_interface,
    )
    return _one("Promote", request, training_pb2.Lineage, _lineage)


def _rollback(model: str) -> Conversation[tuple[str, str]]:
    request = training_pb2.RollbackRequest(model=model)
    return _one(
        "Rollback",
        request,
        training_pb2.RollbackResponse,
        lambda found: (found.withdrawn, found.serving),
        ModelNotFoundError,
    )


def _lineages(model: str, version: str) -> Conversation[tuple[ModelLineage, ...]]:
    request = training_pb2.GetLineageRequest(model=model, version=version)
    return _one(
        "GetLineage",
        request,
        training_pb2.GetLineageResponse,
        lambda found: tuple(map(_lineage, found.versions)),
        ModelNotFoundError,
    )


def _parameters(model: str, version: str) -> Conversation[ModelParameters]:
    request = training_pb2.GetParametersRequest(model=model, version=version)
    return _one("GetParameters", request, training_pb2.Parameters, _model_parameters, ModelNotFoundError)


def _set_parameters(model: str, version: str, values: Array, title: str) -> Conversation[TrainingJob]:
    request = training_pb2.SetParametersRequest(
        model=model, version=version, buffer=_flat(values), title=title
    )
    return _one("SetParameters", request, training_pb2.Job, _job, ModelNotFoundError)


def _submit_delta(
    model: str, version: str, delta: Array, name: str, contributor: str, weight: float
) -> Conversation[tuple[int, float]]:
    request = training_pb2.SubmitDeltaRequest(
        model=model,
        version=version,
        round=name,
        contributor=contributor,
        weight=weight,
        buffer=_flat(delta),
    )
    return _one(
        "SubmitDelta",
        request,
        training_pb2.SubmitDeltaResponse,
        lambda found: (found.contributors, found.weight),
        ModelNotFoundError,
    )


def _average_deltas(
    model: str, version: str, name: str, at_least: int, title: str
) -> Conversation[TrainingJob]:
    request = training_pb2.AverageDeltasRequest(
        model=model, version=version, round=name, at_least=at_least, title=title
    )
    return _one("AverageDeltas", request, training_pb2.Job, _job, ModelNotFoundError)


def _flat(values: Array) -> bytes:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind != "f":
        raise InvalidRequestError(f"give floats in one dimension, not {array.dtype} {list(array.shape)}")
    return array.astype("<f4").tobytes()


def _model_parameters(found: Any) -> ModelParameters:
    return ModelParameters(
        found.model,
        found.version,
        tuple(entry.name for entry in found.entries),
        tuple(tuple(entry.shape) for entry in found.entries),
        np.frombuffer(found.buffer, "<f4").copy(),
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


def _named(job: str) -> Any:
    return training_pb2.JobRequest(id=job)


def _watch_call(job: str, after: int) -> Call:
    request = training_pb2.WatchJobRequest(id=job, after=after)
    return Call(
        f"{_SERVICE}Watch", request, training_pb2.JobEvent, f"events of {job!r}", missing=JobNotFoundError
    )


def _stream_call() -> Call:
    request = training_pb2.StartStreamRequest()
    return Call(f"{_SERVICE}StartStream", request, training_pb2.Job, "StartStream of training")


def _stream(request: Any, batches: Iterable[Batch]) -> Iterator[Any]:
    yield training_pb2.StartStreamRequest(start=request)
    for batch in batches:
        yield _batch(batch)


async def _async_stream(request: Any, batches: Iterable[Batch] | AsyncIterable[Batch]) -> AsyncIterator[Any]:
    yield training_pb2.StartStreamRequest(start=request)
    if isinstance(batches, AsyncIterable):
        async for batch in batches:
            yield _batch(batch)
    else:
        for batch in batches:
            yield _batch(batch)


def _batch(batch: Batch) -> Any:
    message = training_pb2.StartStreamRequest(batch=training_pb2.Batch())
    for name, value in batch.items():
        datatype, array = array_of(name, np.asarray(value), "")
        message.batch.tensors.add(
            name=name, datatype=datatype, shape=array.shape, raw=encode_input(name, datatype, array)
        )
    return message


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
    )


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
    )
