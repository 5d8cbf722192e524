"""The data plane: every model that is served, what it admits, and how models come and go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import final

from onward.errors import ConfigError, OnwardError, UnsupportedError
from onward_protos.tensors import encode_raw
from onward_server.dataplane.caching import CachedAnswer, ResponseCache
from onward_server.dataplane.classification import classified
from onward_server.dataplane.crosscheck import CheckOutcome
from onward_server.dataplane.executors import ENGINES, EngineFactory
from onward_server.dataplane.hosts import Host, ProcessHost, ThreadHost
from onward_server.dataplane.messages import InferAnswer, InferRequest
from onward_server.dataplane.opening import Opener, effective
from onward_server.dataplane.overrides import Override, Overrides
from onward_server.dataplane.repository import Entry, is_name, names, scan_model
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
from onward_server.settings import ModelSettings, ServerSettings
from onward_server.tracing import Tracer

__all__ = ["DataPlane", "ModelState"]

_LOG = logging.getLogger(__name__)

ModelState = tuple[str, int, str, str]
"""Name, version (0: the model as a whole), `READY`, `LOADING` or `UNAVAILABLE`, and the reason."""


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
        self._opener = Opener(host, in_process, settings.in_process_us, self._pool)
        self._overrides = Overrides()
        self._admitted = 0
        self._admitted_bytes = 0
        self._draining = False
        self._closed = False
        self._models: dict[str, dict[int, ServedModel]] = {}
        self._entries: dict[tuple[str, int], tuple[Entry, ModelSettings, object]] = {}
        self._problems: dict[tuple[str, int], str] = {}
        self._loading: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._retiring: set[asyncio.Task[None]] = set()
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
        found = await asyncio.to_thread(names, settings.repository)
        if engines is not None or settings.isolation == "thread":
            host: Host = ThreadHost(engines or ENGINES, settings.limits.response_bytes)
        else:
            host = ProcessHost(settings)
        plane = cls(settings, host, settings.in_process == "auto" and engines is None)
        try:
            chosen = found
            if settings.model_control == "explicit" and "*" not in settings.startup_models:
                chosen = list(settings.startup_models)
                missing = [name for name in chosen if name not in found]
                if missing:
                    raise ConfigError(f"startup_models: the repository has no model {missing[0]!r}")
            await asyncio.gather(*(plane._refresh_model(name) for name in chosen))
        except BaseException:
            plane.close()
            raise
        if not plane._models:
            _LOG.warning("repository %s holds no model that can be served", settings.repository)
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
        """Names of the models that are served."""
        return sorted(self._models)

    @property
    def problems(self) -> Mapping[tuple[str, int], str]:
        """Why a model's version is not served; version 0 stands for the model as a whole."""
        return dict(self._problems)

    def versions(self, name: str) -> list[int]:
        """The versions of a model that are served, oldest first."""
        return sorted(self._models.get(name, {}))

    def states(self, *, ready_only: bool = False) -> list[ModelState]:
        """Every model that the repository holds, as far as it was looked at."""
        found = {(m.name, m.version): ("READY", "") for m in self.select()}
        if not ready_only:
            for key, problem in self._problems.items():
                found.setdefault(key, ("UNAVAILABLE", problem))
            for name in self._loading:
                if name not in self._models:
                    found[name, 0] = ("LOADING", "")
        return [(name, version, *state) for (name, version), state in sorted(found.items())]

    def model(self, name: str, version: str = "") -> ServedModel:
        """The model to use for a name and a version as a request gives them; "" is the latest version.

        Raises:
            ModelNotFoundError: the repository has no such model or version.
            ModelUnavailableError: it has, but it could not be loaded.
        """
        versions = self._models.get(name)
        if versions is None and name in self.settings.aliases:
            name, _, fixed = self.settings.aliases[name].partition("/")
            version = version or fixed
            versions = self._models.get(name)
        versions = versions or {}
        if not version and versions:
            return versions[max(versions)]
        number = int(version) if version.isascii() and version.isdecimal() and len(version) < 10 else None
        if number is not None and number in versions and str(number) == version:
            return versions[number]
        known = {v: problem for (n, v), problem in self._problems.items() if n == name}
        relevant = [problem for v, problem in known.items() if not version or v in (0, number)]
        if relevant:
            raise ModelUnavailableError(f"model {name!r} could not be loaded: {relevant[0]}")
        if versions or known:
            served = ", ".join(map(str, sorted(versions))) or "none"
            raise ModelNotFoundError(f"model {name!r} has no version {version!r}; versions served: {served}")
        raise ModelNotFoundError(f"no model {name!r}; models served: {', '.join(self.names) or 'none'}")

    def select(self, name: str = "", version: str = "") -> list[ServedModel]:
        """Every served version that fits; an empty name or version stands for all.

        Raises:
            ModelNotFoundError: a name or version is given and there is no such model.
        """
        if not name:
            return [self._models[n][v] for n in self.names for v in self.versions(n)]
        if version:
            return [self.model(name, version)]
        self.model(name)
        return [self._models[name][v] for v in self.versions(name)]

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
                identity=request.id,
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
            check_inputs(model.inputs, request.inputs)
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

    async def load(self, name: str, override: Override | None = None) -> None:
        """Load a model, or load it again, all of the versions that its policy chooses; then swap.

        Args:
            name: the model.
            override: settings and files in the place of the repository's; None: the repository's.

        Raises:
            ControlError: `model_control` is not `explicit`.
            ModelNotFoundError: the repository has no such model.
            ModelUnavailableError: a version cannot be served; what was served before still is.
        """
        self._check_control(name)
        if name not in await asyncio.to_thread(names, self.settings.repository) and (
            override is None or not override.files
        ):
            raise ModelNotFoundError(f"the repository has no model {name!r}")
        await self._refresh_model(name, override=override, strict=True)

    async def publish(self, name: str, version: int) -> None:
        """Look at one model of the repository again; `version` has to be served then. See `refresh`.

        Raises:
            ControlError: the model is served from files that a client sent.
            ModelUnavailableError: the version cannot be served; what was served before still is.
        """
        override = self._overrides.of(name)
        if override is not None and override.repository is not None:
            raise ControlError(f"model {name!r} is served from files that a client sent; unload it first")
        await self._refresh_model(name, needed=version)

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests that it has are answered.

        Raises:
            ControlError: `model_control` is not `explicit`.
            ModelNotFoundError: it is not loaded.
        """
        self._check_control(name)
        async with self._lock(name):
            versions = self._models.pop(name, {})
            known = [key for key in self._problems if key[0] == name]
            if not versions and not known:
                raise ModelNotFoundError(f"no model {name!r} is loaded")
            for version in versions:
                self._problems[name, version] = "unloaded"
                self._entries.pop((name, version), None)
            self._overrides.drop(name)
            for model in versions.values():
                self._retire(model)
        _LOG.info("model %s was unloaded", name)

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
        try:
            found = set(await asyncio.to_thread(names, self.settings.repository))
        except ConfigError as error:
            _LOG.error("the repository stays as it is: %s", error)
            return
        known = set(self._models) | {name for name, _ in self._problems}
        chosen = known if self.settings.model_control == "explicit" else known | found
        unloaded = {name for (name, _), problem in self._problems.items() if problem == "unloaded"}
        await asyncio.gather(
            *(self._refresh_model(name) for name in sorted(chosen - (unloaded - set(self._models))))
        )

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
        self._draining = self._closed = True
        for task in self._retiring:
            task.cancel()
        for model in self.select():
            model.close()
        self._host.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._overrides.close()
        self.regions.close()
        if self.tracer is not None:
            self.tracer.close()

    def _check_control(self, name: str) -> None:
        if self.settings.model_control != "explicit":
            raise ControlError(
                f"models are not loaded by clients: model_control is {self.settings.model_control!r}, "
                "not 'explicit'"
            )
        if not is_name(name):
            raise RequestError(
                f"{name[:128]!r} cannot be a model's name: letters, digits, '.', '_' and '-', at most 128"
            )

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _refresh_model(
        self, name: str, *, override: Override | None = None, strict: bool = False, needed: int | None = None
    ) -> None:
        """Open what has changed, then swap; with `strict`, everything has to open, else what is `needed`."""
        async with self._lock(name):
            self._loading.add(name)
            try:
                await self._swap(name, override, strict, needed)
            finally:
                self._loading.discard(name)

    async def _swap(self, name: str, override: Override | None, strict: bool, needed: int | None) -> None:
        if override is None and not strict:
            override = self._overrides.of(name)
        if override is not None and override.files:
            override = await asyncio.to_thread(self._overrides.write, name, override)
        root = self.settings.repository
        if override is not None and override.repository is not None:
            root = override.repository
        entries = await asyncio.to_thread(scan_model, root, name)
        if override is not None and override.settings is not None:
            entries = _overridden(entries, override.settings)
        old = self._models.get(name, {})
        new: dict[int, ServedModel] = {}
        opened: list[ServedModel] = []
        problems: dict[tuple[str, int], str] = {}
        records: dict[tuple[str, int], tuple[Entry, ModelSettings, object]] = {}
        try:
            for entry in entries:
                key = (name, entry.version)
                chosen = effective(entry.settings, self.settings)
                record = (entry, chosen, await asyncio.to_thread(_fingerprint, entry))
                if self._entries.get(key) == record:
                    # nothing has changed, not even that it could not be opened
                    if entry.version in old:
                        new[entry.version] = old[entry.version]
                        records[key] = record
                        continue
                    if not strict and key in self._problems:
                        problems[key] = self._problems[key]
                        records[key] = record
                        continue
                problem = entry.problem
                if not problem:
                    try:
                        model = await self._opener.open(entry, chosen)
                        opened.append(model)
                        new[entry.version] = model
                    except OnwardError as error:
                        problem = str(error)
                    except Exception as error:  # noqa: BLE001 - one model must not keep the others from being served
                        _LOG.exception("model %s version %d", name, entry.version)
                        problem = f"{type(error).__name__}: {error}"
                records[key] = record
                if problem:
                    problems[key] = problem
                    _LOG.error("model %s version %s is not served: %s", name, entry.version or "-", problem)
            if strict and (problems or not new):
                reason = next(iter(problems.values()), "it has no version")
                raise ModelUnavailableError(f"model {name!r} could not be loaded: {reason}")
            if needed is not None and needed not in new:
                reason = problems.get((name, needed), f"its version policy does not choose {needed}")
                raise ModelUnavailableError(f"model {name!r} could not be loaded: {reason}")
        except BaseException:
            for model in opened:
                model.close()
            if strict and not old:
                self._problems.update(problems)
            raise
        if self._closed:
            for model in opened:
                model.close()
            return
        # an old version goes on where the new file of the same number cannot be opened
        kept = {v: m for v, m in old.items() if v not in new and (name, v) in problems}
        merged = {**kept, **new}
        if override is not None:
            self._overrides.keep(name, override)
        elif strict:
            self._overrides.drop(name)
        if merged:
            self._models[name] = merged
        else:
            self._models.pop(name, None)
        for key in [key for key in (*self._problems, *self._entries) if key[0] == name]:
            self._problems.pop(key, None)
            self._entries.pop(key, None)
        self._entries.update(records)
        self._problems.update(problems)
        for version, model in old.items():
            if merged.get(version) is not model:
                self._retire(model)
        for model in opened:
            _LOG.info("%s is ready (%s)", model.title, model.engine)

    def _retire(self, model: ServedModel) -> None:
        task = asyncio.get_running_loop().create_task(model.retire(self.settings.drain_timeout))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


def _overridden(entries: list[Entry], settings: ModelSettings) -> list[Entry]:
    versions = settings.versions.chosen([entry.version for entry in entries])
    return [replace(entry, settings=settings) for entry in entries if entry.version in versions]


def _fingerprint(entry: Entry) -> object:
    """What changes when any file of a version does."""
    try:
        files = [*entry.path.parent.iterdir()] if entry.version else []
        if entry.settings.labels is not None:
            files.append(entry.folder / entry.settings.labels)
        found = [(file.name, file.stat()) for file in sorted(files)]
    except OSError:
        return None
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found]
