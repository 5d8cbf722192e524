"""The data plane: every model that is served, and the worker threads that run them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar, final

from onward.errors import ModelError, OnwardError
from onward.graph import Array
from onward_server.dataplane.executors import ENGINES, EngineFactory
from onward_server.dataplane.repository import Entry, scan
from onward_server.dataplane.served import Inference, ServedModel, ShadowQueue
from onward_server.dataplane.validation import check_inputs, check_outputs, check_transferable
from onward_server.errors import (
    DrainingError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
)
from onward_server.settings import CrossCheckSettings, Engine, ServerSettings

__all__ = ["DataPlane"]

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@final
class DataPlane:
    """Loads a repository and answers requests; all waiting is asynchronous, all computing in threads.

    Args:
        settings: the server's settings.
        engines: how to open a model in each engine; by default Onward's own and onnxruntime.

    Raises:
        ConfigError: the repository cannot be read. A model that cannot be loaded is reported in the log
            and by `reports`, and does not keep the others from being served.
    """

    def __init__(self, settings: ServerSettings, engines: Mapping[str, EngineFactory] = ENGINES) -> None:
        self._settings = settings
        self._engines = engines
        self.shadow = ShadowQueue()
        self._pool = ThreadPoolExecutor(settings.executor_threads, thread_name_prefix="onward-infer")
        self._capacity = settings.executor_threads + settings.queue_size
        self._pending = 0
        self._lock = threading.Lock()
        self._admitted = 0
        self._draining = False
        self._closed = False
        self._models: dict[str, dict[int, ServedModel]] = {}
        self._problems: dict[tuple[str, int], str] = {}
        for entry in scan(settings.repository):
            self._load(entry)
        if not self._models:
            _LOG.warning("repository %s holds no model that can be served", settings.repository)

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return not self._draining

    @property
    def pending(self) -> int:
        """Requests that are being answered, and computations that outlive a cancelled request."""
        with self._lock:
            return max(self._pending, self._admitted)

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

    def model(self, name: str, version: str = "") -> ServedModel:
        """The model to use for a name and a version as a request gives them; "" is the latest version.

        Raises:
            ModelNotFoundError: the repository has no such model or version.
            ModelUnavailableError: it has, but it could not be loaded.
        """
        versions = self._models.get(name, {})
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

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Enclose the whole of a request, so that a drain waits for it.

        Raises:
            DrainingError: the server is stopping.
        """
        with self._lock:
            if self._draining:
                raise DrainingError("the server is stopping and takes no new requests")
            self._admitted += 1
        try:
            yield
        finally:
            with self._lock:
                self._admitted -= 1

    async def infer(
        self, model: ServedModel, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> Inference:
        """Answer one request.

        Args:
            model: from `model`.
            inputs: an array for each of the model's inputs.
            outputs: names of the outputs wanted; None: all.

        Raises:
            InputError: names, datatypes or shapes do not fit the model.
            OverloadedError: too many requests wait already.
            DrainingError: the data plane is closed.
            ExecutionError: an engine failed.
            VerificationError: the engines disagree, and the model's policy is to fail.
        """
        check_inputs(model.inputs, inputs)
        if outputs is not None:
            check_outputs(model.outputs, outputs)
        queued = time.perf_counter_ns()
        return await self.run(lambda: model.infer(inputs, outputs, time.perf_counter_ns() - queued))

    async def run(self, job: Callable[[], _T]) -> _T:
        """Run a blocking job of a request in a worker thread.

        Raises:
            OverloadedError: too many requests wait already.
            DrainingError: the data plane is closed.
        """
        with self._lock:
            if self._closed:
                raise DrainingError("the server has stopped")
            if self._pending >= self._capacity:
                raise OverloadedError(f"{self._pending} requests are waiting or running already; try later")
            self._pending += 1
        future = self._pool.submit(job)
        future.add_done_callback(self._finished)
        return await asyncio.wrap_future(future)

    async def drain(self, timeout: float) -> bool:
        """Take no new requests and wait for the running ones; False when some still run after `timeout` s."""
        with self._lock:
            self._draining = True
        deadline = time.monotonic() + timeout
        while self.pending and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return self.pending == 0

    def close(self) -> None:
        """Give up what waits and release the worker threads; running computations end by themselves."""
        with self._lock:
            self._draining = self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.shadow.close()

    def _finished(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1

    def _load(self, entry: Entry) -> None:
        problem = entry.problem
        if not problem:
            try:
                model = self._open(entry)
                self._models.setdefault(entry.name, {})[entry.version] = model
            except OnwardError as error:
                problem = str(error)
            except Exception as error:  # noqa: BLE001 - one model must not keep the others from being served
                _LOG.exception("model %s version %d", entry.name, entry.version)
                problem = f"{type(error).__name__}: {error}"
        if problem:
            self._problems[entry.name, entry.version] = problem
            _LOG.error("model %s version %s is not served: %s", entry.name, entry.version or "-", problem)

    def _open(self, entry: Entry) -> ServedModel:
        engine: Engine = entry.settings.engine or self._settings.engine
        other: Engine = "onnxruntime" if engine == "onward" else "onward"
        check: CrossCheckSettings = entry.settings.cross_check or self._settings.cross_check
        threads = entry.settings.threads or self._settings.threads
        executor = self._engines[engine](entry.path, threads)
        check_transferable([*executor.inputs, *executor.outputs])
        witness = None
        if check.policy != "off":
            try:
                witness = self._engines[other](entry.path, threads)
            except ModelError as error:
                raise ModelError(f"{other}, the cross-check's witness: {error}") from error
        return ServedModel(
            entry.name,
            entry.version,
            engine=engine,
            executor=executor,
            witness=witness,
            check=check,
            shadow=self.shadow,
        )
