"""Where models run: in worker processes, or in threads of this process."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, final

from onward.errors import OnwardError, StorageError
from onward.graph import Array, TensorSpec
from onward_server.dataplane.crosscheck import Comparison
from onward_server.dataplane.executors import EngineFactory, Executor
from onward_server.dataplane.validation import check_transferable
from onward_server.dataplane.witness import Finding, Pair, checked, located
from onward_server.errors import (
    ExecutionError,
    MemoryLimitError,
    ModelUnavailableError,
    RunTimeoutError,
    WorkerLostError,
)
from onward_server.model_settings import CrossCheckSettings, Engine
from onward_server.settings import ServerSettings
from onward_server.workers.supervisor import Worker, Zygote, error_of
from onward_server.workers.worker import spec_from

__all__ = ["Checks", "Host", "Instance", "ModelFile", "ProcessHost", "Run", "ThreadHost", "worker_memory"]

_LOG = logging.getLogger(__name__)
_LAST = 19
_Result = TypeVar("_Result")


@final
@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model to open: a file, an engine, its threads, and what error texts call it."""

    path: Path
    engine: Engine
    threads: int
    title: str


@final
@dataclass(frozen=True, slots=True)
class Run:
    """Outputs of one run, and the nanoseconds that the engine took for them."""

    outputs: dict[str, Array]
    ns: int


@final
@dataclass(frozen=True, slots=True)
class Checks:
    """What checks found, and the seconds of processor time that the witness took."""

    findings: Sequence[Finding]
    seconds: float


class Instance(Protocol):
    """A model that was opened; one run at a time."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """What a run has to be given."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What a run can return."""

    @property
    def texts(self) -> str | None:
        """The name of the input that takes texts besides token numbers."""

    @property
    def restarts(self) -> int:
        """How often the process behind it was replaced."""

    async def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None, timeout: float) -> Run:
        """Compute.

        Raises:
            OnwardError: what the engine raised; WorkerLostError or RunTimeoutError where its process ended.
        """

    async def check(
        self, pairs: Sequence[Pair], settings: CrossCheckSettings, timeout: float, *, is_reference: bool
    ) -> Checks:
        """Compute again what was answered, and compare.

        Args:
            pairs: requests and answers.
            settings: tolerances.
            timeout: seconds for all of them.
            is_reference: whether this instance is onnxruntime's.

        Raises:
            OnwardError: none was compared: WorkerLostError or RunTimeoutError where the process ended.
        """

    def close(self) -> None:
        """Give up what runs, and the process."""


class Host(Protocol):
    """Opens models."""

    async def open(self, model: ModelFile) -> Instance:
        """Open a model in a place of its own. Raises OnwardError."""

    async def open_witness(self, model: ModelFile, *, awaited: bool) -> Instance:
        """Open a model beside other witnesses. Raises OnwardError.

        Args:
            model: what to open.
            awaited: whether answers wait for it; otherwise it gives way to everything.
        """

    async def locate(
        self, model: ModelFile, inputs: Mapping[str, Array], settings: CrossCheckSettings, timeout: float
    ) -> str:
        """Where both engines part on these inputs, see `witness.located`; one request at a time."""

    def close(self) -> None:
        """End everything that was opened."""


def worker_memory(setting: int) -> int:
    """Bytes of data that a worker may have: the setting, or half of what the machine or the container has."""
    if setting:
        return setting
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            total = min(total, int(text))
    return total // 2


@final
class ProcessHost:
    """Opens models in worker processes.

    Args:
        settings: limits of the workers.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._zygote = Zygote()
        self._memory = worker_memory(settings.worker_memory_bytes)
        self._nice = settings.worker_nice
        self._witnesses = {True: _Place(self._zygote, self._nice), False: _Place(self._zygote, _LAST)}
        self._locating = asyncio.Lock()
        self._number = 0

    async def open(self, model: ModelFile) -> Instance:
        """See Host."""
        return await self._open(model, _Place(self._zygote, self._nice), own=True)

    async def open_witness(self, model: ModelFile, *, awaited: bool) -> Instance:
        """See Host."""
        return await self._open(model, self._witnesses[awaited], own=False)

    async def locate(
        self, model: ModelFile, inputs: Mapping[str, Array], settings: CrossCheckSettings, timeout: float
    ) -> str:
        """See Host; in a worker of its own, so that no check waits for it."""
        header = {
            "call": "locate",
            "path": str(model.path),
            "memory": self._memory,
            "settings": settings.model_dump_json(include={"tolerance"}),
        }
        async with self._locating:
            worker = await self._zygote.fork(_LAST)
            try:
                answer, _ = await worker.call(header, inputs, timeout, f"locating in {model.title}")
            finally:
                worker.kill()
        return str(answer["text"])

    def close(self) -> None:
        """See Host."""
        for place in self._witnesses.values():
            place.close()
        self._zygote.close()

    async def _open(self, model: ModelFile, place: _Place, *, own: bool) -> Instance:
        self._number += 1
        instance = _ProcessInstance(
            place,
            model,
            key=str(self._number),
            memory=self._memory,
            load_timeout=self._settings.load_timeout,
            response_bytes=self._settings.limits.response_bytes,
            own=own,
        )
        try:
            async with place.lock:
                await instance.opened()
        except BaseException:
            instance.close()
            raise
        return instance


@final
class _Place:
    """A worker, and the keys of the models that are open in it; forked again when it has ended."""

    def __init__(self, zygote: Zygote, nice: int) -> None:
        self.lock = asyncio.Lock()
        self.opened: set[str] = set()
        self.forks = 0
        self.closed = False
        self._zygote = zygote
        self._nice = nice
        self._worker: Worker | None = None

    @property
    def up(self) -> bool:
        """Whether the process lives."""
        return self._worker is not None and self._worker.alive

    async def worker(self) -> Worker:
        """The process, a new one where it has ended."""
        if self.closed:
            raise WorkerLostError("the model is being unloaded")
        if self._worker is None or not self._worker.alive:
            self.opened.clear()
            self._worker = await self._zygote.fork(self._nice)
            self.forks += 1
        return self._worker

    def close(self) -> None:
        self.closed = True
        if self._worker is not None:
            self._worker.kill()


@final
class _ProcessInstance:
    def __init__(
        self,
        place: _Place,
        model: ModelFile,
        *,
        key: str,
        memory: int,
        load_timeout: float,
        response_bytes: int,
        own: bool,
    ) -> None:
        self.inputs: Sequence[TensorSpec] = ()
        self.outputs: Sequence[TensorSpec] = ()
        self.texts: str | None = None
        self._place = place
        self._model = model
        self._key = key
        self._memory = memory
        self._load_timeout = load_timeout
        self._response_bytes = response_bytes
        self._own = own
        self._identity = _identity(model.path)
        self._again: asyncio.Task[None] | None = None

    @property
    def restarts(self) -> int:
        return max(self._place.forks - 1, 0) if self._own else 0

    async def opened(self) -> Worker:
        """The worker with the model in it; the caller holds the place's lock."""
        worker = await self._place.worker()
        if self._own:
            worker.on_idle_end = self._come_back
        if self._key in self._place.opened:
            return worker
        title = f"opening {self._model.title}"
        if _identity(self._model.path) != self._identity:
            raise ModelUnavailableError(f"{title}: the file has changed since it was loaded; load it again")
        header = {
            "call": "open",
            "key": self._key,
            "path": str(self._model.path),
            "engine": self._model.engine,
            "threads": self._model.threads,
            "memory": self._memory,
        }
        answer, _ = await worker.call(header, {}, self._load_timeout, title)
        if _identity(self._model.path) != self._identity:
            worker.kill()
            raise ModelUnavailableError(f"{title}: the file changed while it was read; load it again")
        self._place.opened.add(self._key)
        self.inputs = tuple(map(spec_from, answer["inputs"]))
        self.outputs = tuple(map(spec_from, answer["outputs"]))
        self.texts = answer["texts"]
        return worker

    async def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None, timeout: float) -> Run:
        header = {
            "call": "run",
            "key": self._key,
            "outputs": None if outputs is None else list(outputs),
            "limit": self._response_bytes,
        }
        answer, arrays = await self._call(header, inputs, timeout)
        return Run(arrays, int(answer["ns"]))

    async def check(
        self, pairs: Sequence[Pair], settings: CrossCheckSettings, timeout: float, *, is_reference: bool
    ) -> Checks:
        arrays = {f"{n}i{name}": a for n, pair in enumerate(pairs) for name, a in pair.inputs.items()}
        arrays |= {f"{n}o{name}": a for n, pair in enumerate(pairs) for name, a in pair.outputs.items()}
        header = {
            "call": "check",
            "key": self._key,
            "pairs": [[list(pair.inputs), list(pair.outputs)] for pair in pairs],
            "settings": settings.model_dump_json(include={"tolerance"}),
            "is_reference": is_reference,
        }
        answer, _ = await self._call(header, arrays, timeout)
        return Checks([_finding(result) for result in answer["results"]], answer["ns"] / 1e9)

    async def _call(
        self, header: Mapping[str, Any], arrays: Mapping[str, Array], timeout: float
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        async with self._place.lock:
            worker = await self.opened()
            try:
                return await worker.call(header, arrays, timeout, self._model.title)
            except (WorkerLostError, RunTimeoutError) as error:
                _LOG.error("%s", error)
                self._come_back()
                raise
            except MemoryLimitError:
                # the allocator may keep what was allocated before it failed; a new process has none of it
                worker.kill()
                self._come_back()
                raise

    def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
        if self._own:
            self._place.close()
        else:
            self._place.opened.discard(self._key)

    def _come_back(self) -> None:
        if self._own and not self._place.closed:
            self._again = asyncio.get_running_loop().create_task(self._reopened())

    async def _reopened(self) -> None:
        start = time.perf_counter()
        try:
            async with self._place.lock:
                await self.opened()
        except OnwardError as error:
            _LOG.error("%s", error)
        else:
            seconds = time.perf_counter() - start
            _LOG.warning("%s: another worker is ready after %.2f s", self._model.title, seconds)


def _finding(result: dict[str, Any]) -> Finding:
    return error_of(result) if "error" in result else Comparison(**result)


def _identity(path: Path) -> tuple[tuple[int, int, int, int], ...]:
    """What tells a version's files from later ones: all of its folder, external data included."""
    try:
        files = sorted(file for file in path.parent.iterdir() if file.is_file())
        found = [file.stat() for file in files]
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    return tuple((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found)


@final
class ThreadHost:
    """Opens models in threads of this process; a run cannot be stopped.

    Args:
        engines: how to open a model in each engine.
        response_bytes: of all outputs of a run.
    """

    def __init__(self, engines: Mapping[str, EngineFactory], response_bytes: int) -> None:
        self._engines = engines
        self._response_bytes = response_bytes
        self._witness = ThreadPoolExecutor(1, thread_name_prefix="onward-witness")
        self._pools: list[ThreadPoolExecutor] = [self._witness]

    async def open(self, model: ModelFile) -> Instance:
        """See Host."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="onward-infer")
        self._pools.append(pool)
        return await self._open(model, pool, own=True)

    async def open_witness(self, model: ModelFile, *, awaited: bool) -> Instance:
        """See Host."""
        return await self._open(model, self._witness, own=False)

    async def locate(
        self, model: ModelFile, inputs: Mapping[str, Array], settings: CrossCheckSettings, timeout: float
    ) -> str:
        """See Host."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._witness, located, model.path, inputs, settings)

    def close(self) -> None:
        """See Host."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _open(self, model: ModelFile, pool: ThreadPoolExecutor, *, own: bool) -> Instance:
        def opened() -> _ThreadInstance:
            executor = self._engines[model.engine](model.path, model.threads)
            check_transferable([*executor.inputs, *executor.outputs])
            return _ThreadInstance(executor, pool, self._response_bytes, own)

        return await asyncio.get_running_loop().run_in_executor(pool, opened)


@final
class _ThreadInstance:
    restarts = 0

    def __init__(self, executor: Executor, pool: ThreadPoolExecutor, response_bytes: int, own: bool) -> None:
        self.inputs: Sequence[TensorSpec] = executor.inputs
        self.outputs: Sequence[TensorSpec] = executor.outputs
        self.texts = None if executor.texts is None else executor.texts.name
        self._executor = executor
        self._pool = pool
        self._response_bytes = response_bytes
        self._own = own

    async def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None, timeout: float) -> Run:
        def job() -> Run:
            start = time.perf_counter_ns()
            try:
                found = self._executor.run(inputs, outputs)
            except OnwardError:
                raise
            except MemoryError:
                raise MemoryLimitError("the model ran out of memory") from None
            except Exception as error:
                raise ExecutionError(f"{type(error).__name__}: {error}") from error
            size = sum(array.nbytes for array in found.values())
            if size > self._response_bytes:
                raise MemoryLimitError(
                    f"the outputs take {size} bytes; an answer may have {self._response_bytes}"
                )
            return Run(found, time.perf_counter_ns() - start)

        return await self._done(job)

    async def check(
        self, pairs: Sequence[Pair], settings: CrossCheckSettings, timeout: float, *, is_reference: bool
    ) -> Checks:
        def job() -> Checks:
            start = time.thread_time()
            findings = checked(self._executor, pairs, settings, is_reference=is_reference)
            return Checks(findings, time.thread_time() - start)

        return await self._done(job)

    async def _done(self, job: Callable[[], _Result]) -> _Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, job)
        except RuntimeError:
            raise WorkerLostError("the model is being unloaded") from None

    def close(self) -> None:
        if self._own:
            self._pool.shutdown(wait=False, cancel_futures=True)
