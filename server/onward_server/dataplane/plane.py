"""The data plane: requests to models, what is admitted of them, and the settings that clients see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import final

from onward.errors import UnsupportedError
from onward_protos.tensors import encode_raw
from onward_server.dataplane.caching import CachedAnswer, ResponseCache
from onward_server.dataplane.catalogue import Catalogue, ModelState
from onward_server.dataplane.classification import classified
from onward_server.dataplane.crosscheck import CheckOutcome
from onward_server.dataplane.executors import ENGINES, EngineFactory
from onward_server.dataplane.hosts import Host, ProcessHost, ThreadHost
from onward_server.dataplane.messages import InferAnswer, InferRequest
from onward_server.dataplane.opening import Opener
from onward_server.dataplane.overrides import Override
from onward_server.dataplane.served import Inference, ServedModel
from onward_server.dataplane.shared_memory import SharedMemory
from onward_server.dataplane.validation import check_inputs, check_outputs
from onward_server.errors import (
    ControlError,
    DrainingError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
    RequestError,
)
from onward_server.logs import LogValue, change_log, log_settings
from onward_server.settings import ServerSettings
from onward_server.tracing import Tracer

__all__ = ["DataPlane", "ModelState"]


@final
class DataPlane:
    """The models of a repository, and requests to them; from `open`, used on one event loop."""

    def __init__(self, settings: ServerSettings, host: Host, in_process: bool) -> None:
        self.settings = settings
        self.regions = SharedMemory(settings.shared_memory)
        self.tracer = None if settings.trace is None else Tracer(settings.trace)
        self.cache = ResponseCache(settings.response_cache_bytes)
        self.started = time.time()
        self._host = host
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="onward-inline")
        opener = Opener(host, in_process, settings.in_process_us, self._pool)
        self._catalogue = Catalogue(lambda: self.settings, opener)
        self._admitted = 0
        self._admitted_bytes = 0
        self._draining = False
        self.refusals = 0

    @classmethod
    async def open(
        cls, settings: ServerSettings, engines: Mapping[str, EngineFactory] | None = None
    ) -> DataPlane:
        """Load a repository.

        Args:
            settings: the server's settings.
            engines: how to open a model in each engine; given, models run in threads of this process.

        Raises:
            ConfigError: the repository cannot be read. A model that cannot be loaded is reported in the log
                and by `states`, and does not keep the others from being served.
        """
        if engines is not None or settings.isolation == "thread":
            host: Host = ThreadHost(engines or ENGINES, settings.limits.response_bytes)
        else:
            host = ProcessHost(settings)
        plane = cls(settings, host, settings.in_process == "auto" and engines is None)
        try:
            await plane._catalogue.start()
        except BaseException:
            plane.close()
            raise
        return plane

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return not self._draining

    @property
    def pending(self) -> int:
        """Requests that are being answered, and computations that outlive a cancelled request."""
        return max(self._admitted, sum(model.pending for model in self.select()))

    @property
    def pending_bytes(self) -> int:
        """Bytes of the requests that are being answered."""
        return self._admitted_bytes

    @property
    def names(self) -> list[str]:
        """See Catalogue."""
        return self._catalogue.names

    @property
    def problems(self) -> Mapping[tuple[str, int], str]:
        """See Catalogue."""
        return self._catalogue.problems

    def versions(self, name: str) -> list[int]:
        """See Catalogue."""
        return self._catalogue.versions(name)

    def states(self, *, ready_only: bool = False) -> list[ModelState]:
        """See Catalogue."""
        return self._catalogue.states(ready_only=ready_only)

    def model(self, name: str, version: str = "") -> ServedModel:
        """See Catalogue."""
        return self._catalogue.model(name, version)

    def select(self, name: str = "", version: str = "") -> list[ServedModel]:
        """See Catalogue."""
        return self._catalogue.select(name, version)

    def file(self, name: str, version: int) -> Path:
        """See Catalogue."""
        return self._catalogue.file(name, version)

    def check_repository(self, name: str) -> None:
        """See Catalogue."""
        self._catalogue.check_repository(name)

    async def load(self, name: str, override: Override | None = None) -> None:
        """See Catalogue."""
        await self._catalogue.load(name, override)

    async def publish(self, name: str, version: int) -> None:
        """See Catalogue."""
        await self._catalogue.publish(name, version)

    async def unload(self, name: str) -> None:
        """See Catalogue."""
        await self._catalogue.unload(name)

    def admit(self, size: int) -> None:
        """Count a request of `size` bytes, before it is decoded; a drain waits until `leave`.

        Raises:
            DrainingError: the server is stopping.
            OverloadedError: too many requests, or too many bytes of them, are in the server.
        """
        limits = self.settings.limits
        if self._draining:
            raise DrainingError("the server is stopping and takes no new requests")
        if self._admitted >= limits.pending:
            self.refusals += 1
            raise OverloadedError(f"{self._admitted} requests are in the server already; try later")
        if self._admitted and self._admitted_bytes + size > limits.pending_bytes:
            self.refusals += 1
            raise OverloadedError(
                f"{self._admitted_bytes} bytes of requests are in the server already; try later"
            )
        self._admitted += 1
        self._admitted_bytes += size

    def leave(self, size: int) -> None:
        """A request of `size` bytes was answered."""
        self._admitted -= 1
        self._admitted_bytes -= size

    @contextmanager
    def admitted(self, size: int = 0) -> Iterator[None]:
        """Enclose the whole of a request of `size` bytes in `admit` and `leave`."""
        self.admit(size)
        try:
            yield
        finally:
            self.leave(size)

    def check_room(self, name: str, version: str, deadline: float | None) -> None:
        """Refuse a request for a model before anything is done for it, where it would be refused later.

        Raises:
            OverloadedError: too many requests of the model wait.
        """
        try:
            model = self.model(name, version)
        except (ModelNotFoundError, ModelUnavailableError):
            return
        if not self._caches(model):
            model.check_room(deadline)

    async def infer(self, request: InferRequest) -> InferAnswer:
        """Answer one request.

        Raises:
            ModelNotFoundError, ModelUnavailableError: see `model`.
            InputError: names, datatypes or shapes do not fit the model.
            OverloadedError: too many requests wait already.
            DeadlineError: its time ended.
            RunTimeoutError, MemoryLimitError, WorkerLostError: its run was ended.
            ExecutionError: an engine failed.
            VerificationError: the engines disagree, and the model's policy is to fail.
        """
        if self.tracer is None:
            model, outputs = self._checked(request)
            return self._answer(model, request, await self._inferred(model, request, outputs))
        span, begun = self.tracer.begin(request.model, request.headers), time.time_ns()
        try:
            model, outputs = self._checked(request)
            found = await self._inferred(model, request, outputs)
            answer = self._answer(model, request, found)
        except BaseException as error:
            if span is not None:
                self.tracer.fail(span, error)
            raise
        if span is not None:
            self.tracer.end(
                span,
                begun,
                version=model.version,
                identity=request.headers.get("x-request-id", "") or request.id,
                engine=found.engine,
                queue_ns=found.queue_ns,
                infer_ns=found.infer_ns,
            )
        return answer

    def infer_now(self, request: InferRequest) -> InferAnswer | None:
        """The answer of a request that takes microseconds and waits for nothing; None: `infer` it.

        Raises:
            OnwardError: see `infer`.
        """
        if self.tracer is not None:
            return None
        model, outputs = self._checked(request)
        if self._caches(model):
            return None
        found = model.infer_now(request.inputs, outputs, request.deadline)
        return None if found is None else self._answer(model, request, found)

    def _caches(self, model: ServedModel) -> bool:
        return self.cache.size > 0 and model.settings.response_cache

    async def _inferred(
        self, model: ServedModel, request: InferRequest, outputs: list[str] | None
    ) -> Inference:
        if not self._caches(model):
            found = model.infer_now(request.inputs, outputs, request.deadline)
            if found is None:
                found = await model.infer(request.inputs, outputs, request.priority, request.deadline)
            return found
        counts = model.infer_statistics
        start = time.perf_counter_ns()
        key = self.cache.key(model.number, request.inputs, outputs)
        known = self.cache.get(key)
        looked = time.perf_counter_ns() - start
        if known is not None:
            counts.cache_hits += 1
            counts.cache_hit_ns += looked
            return model.recalled(known.outputs, known.engine, looked)
        found = await model.infer(request.inputs, outputs, request.priority, request.deadline)
        start = time.perf_counter_ns()
        if found.outcome is not CheckOutcome.FAILED:
            self.cache.put(key, CachedAnswer(found.outputs, found.engine))
        counts.cache_misses += 1
        counts.cache_miss_ns += looked + time.perf_counter_ns() - start
        return found

    def _checked(self, request: InferRequest) -> tuple[ServedModel, list[str] | None]:
        model = self.model(request.model, request.version)
        if not model.is_known(request.inputs):
            check_inputs(model.inputs, request.inputs, model.texts)
            model.know(request.inputs)
        outputs = None
        if request.outputs is not None:
            outputs = [output.name for output in request.outputs]
            check_outputs(model.outputs, outputs)
            for position, output in enumerate(request.outputs):
                if output.placement is not None:
                    self.regions.check(f"outputs[{position}] ({output.name!r})", output.placement)
        batching = model.settings.batching
        if batching is not None:
            rows = {name: array.shape[0] for name, array in request.inputs.items()}
            if len(set(rows.values())) > 1:
                raise RequestError(f"the inputs have different numbers of rows: {rows}")
            if max(rows.values()) > batching.max_batch:
                most = batching.max_batch
                raise RequestError(f"the inputs have {max(rows.values())} rows; the model takes up to {most}")
        return model, outputs

    def _answer(self, model: ServedModel, request: InferRequest, found: Inference) -> InferAnswer:
        arrays = found.outputs
        placed = {}
        if request.outputs is not None:
            arrays = {}
            for output in request.outputs:
                array = found.outputs[output.name]
                if output.classes:
                    array = classified(output.name, array, output.classes, model.labels)
                arrays[output.name] = array
                if output.placement is not None:
                    where = f"output {output.name!r}"
                    placed[output.name] = self.regions.write(where, output.placement, encode_raw(array))
        parameters = {"cross_check": found.outcome.value, "engine": found.engine}
        if found.outcome is CheckOutcome.SKIPPED and found.reason:
            parameters["cross_check_reason"] = "the witness could not compute it within its limits"
        return InferAnswer(model.name, model.version, request.id, arrays, parameters, placed)

    def log_settings(self, changes: Mapping[str, LogValue]) -> dict[str, LogValue]:
        """The log settings in force, after `changes`.

        Raises:
            ControlError: clients may not change them.
            RequestError: names the setting.
        """
        self._check_remote(changes)
        return change_log(changes) if changes else log_settings()

    def trace_settings(self, model: str, changes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """The trace settings of a model, or with an empty name those of all others, after `changes`.

        Raises:
            UnsupportedError: the server sends no traces.
            ControlError: clients may not change them.
            ModelNotFoundError: there is no such model.
            RequestError: names the setting.
        """
        if self.tracer is None:
            raise UnsupportedError("this server sends no traces (`trace`)")
        if model:
            self.model(model)
        self._check_remote(changes)
        return (self.tracer.change(model, changes) if changes else self.tracer.settings(model)).values()

    def _check_remote(self, changes: Mapping[str, object]) -> None:
        if changes and not self.settings.remote_settings:
            raise ControlError("settings are not changed by clients: `remote_settings` is off")

    async def refresh(self, settings: ServerSettings | None = None) -> None:
        """Look at the repository again: load what is new or has changed, unload what is gone.

        Args:
            settings: new settings of the server; None: as before.
        """
        if settings is not None:
            self.settings = settings
        await self._catalogue.refresh()

    async def watch(self) -> None:
        """Refresh every `poll_seconds`, for ever."""
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            await self.refresh()

    def stop_admitting(self) -> None:
        """Take no new requests."""
        self._draining = True

    async def drain(self, timeout: float) -> bool:
        """Take no new requests and wait for the running ones; False when some still run after `timeout` s."""
        self.stop_admitting()
        deadline = time.monotonic() + timeout
        while self.pending and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return self.pending == 0

    def close(self) -> None:
        """Give up what runs, and end the workers."""
        self._draining = True
        self._catalogue.close()
        self._host.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.regions.close()
        if self.tracer is not None:
            self.tracer.close()
