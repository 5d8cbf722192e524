"""Training jobs: a queue of them, their processes, and what they tell."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, final

from onward.errors import OnwardError, StorageError
from onward.runs.config import to_toml
from onward_server.dataplane import DataPlane
from onward_server.dataplane.hosts import worker_memory
from onward_server.dataplane.repository import MODEL_FILE, is_name, is_version
from onward_server.errors import (
    ControlError,
    DrainingError,
    ExecutionError,
    JobNotFoundError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
    RequestError,
)
from onward_server.settings import TrainingSettings
from onward_server.storage import kept
from onward_server.training.batches import BatchWriter
from onward_server.training.federation import Federation
from onward_server.training.process import TaskProcess
from onward_server.training.promotion import Promotions
from onward_server.training.requests import DATA_FILE, DataPlace, Start, run_to_do
from onward_server.training.statistics import JobStatistics
from onward_server.training.store import Job, JobEvent, JobState, Store

__all__ = ["TrainingService"]

_LOG = logging.getLogger(__name__)
_STOP_SECONDS = 20.0
_EVENTS = 500
_MAX_TITLE = 200
_STATES = ("queued", "running", "completed", "cancelled", "failed")

_T = TypeVar("_T")


@final
class TrainingService:
    """The jobs of one server, used on its event loop.

    Args:
        settings: bounds.
        plane: what serves the versions that are promoted.
        reason: makes a text fit for clients.

    Raises:
        ConfigError: the folder cannot be used.
    """

    def __init__(self, settings: TrainingSettings, plane: DataPlane, reason: Callable[[str], str]) -> None:
        self.settings = settings
        self._plane = plane
        self._reason = reason
        folder = settings.folder.absolute()
        self._folder = folder
        self._store = Store(folder)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="onward-jobs")
        self._jobs = {job.id: job for job in self._store.jobs()}
        self._queue: list[str] = []
        self._running: dict[str, tuple[TaskProcess, asyncio.Task[None]]] = {}
        self._cancelling: set[str] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._changed: dict[str, asyncio.Event] = {}
        self._closing = False
        self.statistics = JobStatistics()
        self._whole: set[asyncio.Task[Any]] = set()
        self._starting = asyncio.Lock()
        self.promotions = Promotions(self, plane, self._store)
        self.federation = Federation(self, plane, folder)

    async def begin(self) -> None:
        """Take up what was queued or running when the last server ended."""
        for job in sorted(self._jobs.values(), key=lambda job: job.number):
            if job.state == "running":
                await self.note(job, "interrupted", {"resumes": job.resumable}, state="queued")
            if not self._jobs[job.id].over:
                self._queue.append(job.id)
        self._pump()

    async def close(self, timeout: float) -> None:
        """Ask the running jobs for a checkpoint; the next server goes on with them."""
        self._closing = True
        for process, _ in self._running.values():
            process.stop()
        tasks = [task for _, task in self._running.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self.promotions.close()
        for timer in self._timers:
            timer.cancel()
        for event in self._changed.values():
            event.set()
        await self.stored(self._store.close)
        self._pool.shutdown()

    async def stored(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """A call to the store, in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)

    def folder_of(self, job: Job) -> Path:
        """Where a job's files are."""
        return self._folder / "jobs" / job.id

    def trained(self, job: Job) -> Path:
        """The model that a job has trained."""
        return self.folder_of(job) / "trained" / MODEL_FILE

    def task(self, job: Job | None, name: str, **fields: Any) -> dict[str, Any]:
        """What a process is told, with the bounds on it."""
        settings = self.settings
        return {
            "task": name,
            "nice": settings.nice,
            "memory": worker_memory(settings.memory_bytes),
            "threads": settings.threads,
            "data_bytes": settings.data_bytes,
            "url": "" if job is None else job.url,
            "fetched": "" if job is None else job.fetched,
            **fields,
        }

    def get(self, identity: str) -> Job:
        """A job.

        Raises:
            JobNotFoundError: there is none by that id.
        """
        job = self._jobs.get(identity)
        if job is None:
            raise JobNotFoundError(f"there is no job {identity[:128]!r}")
        return job

    def jobs(self, state: str = "", limit: int = 0) -> list[Job]:
        """Jobs, the newest first.

        Raises:
            RequestError: the state is none.
        """
        if state and state not in _STATES:
            raise RequestError(f"state {state[:128]!r}: give {', '.join(_STATES)} or nothing")
        found = [job for job in self._jobs.values() if not state or job.state == state]
        return sorted(found, key=lambda job: -job.number)[: limit or 100]

    async def start(self, start: Start, batches: AsyncIterator[dict[str, Any]] | None = None) -> Job:
        """Store a job and put it into the queue.

        Args:
            start: what is asked for.
            batches: tensors by name; None: the data are where the configuration says.

        Raises:
            RequestError: something does not fit.
            ModelNotFoundError: the repository has no such model or version.
            OverloadedError: too many wait already.
            MemoryLimitError: the batches have more bytes than allowed.
            StorageFullError: the disk is full.
        """
        if len(start.title) > _MAX_TITLE:
            raise RequestError(f"title: give at most {_MAX_TITLE} characters")
        parent, version = self._parent(start)
        base = f"models/{parent}/{version}/{MODEL_FILE}" if parent else ""
        run, place = await asyncio.to_thread(
            lambda: run_to_do(start, self.settings, base, sent=batches is not None)
        )
        self._check_room()
        writing = self._folder / "incoming" / f"{time.time_ns():x}"
        try:
            with kept("the job's folder"):
                await asyncio.to_thread((writing / "work").mkdir, parents=True)
                if batches is not None:
                    await self._collect(writing, batches)
                job = Job(
                    id="",
                    number=0,
                    title=start.title,
                    configuration=to_toml(run),
                    parent_model=parent,
                    parent_version=version,
                    url=place.url,
                    fetched=place.link if place.url else "",
                    epochs=run.epochs,
                )
                return await self.whole(self._accept(writing, job, place))
        finally:
            await asyncio.to_thread(shutil.rmtree, writing, True)

    async def whole(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Await what must not stay half done, even if the client goes."""
        task = asyncio.get_running_loop().create_task(call)
        self._whole.add(task)
        task.add_done_callback(self._whole.discard)
        return await asyncio.shield(task)

    async def _accept(self, writing: Path, job: Job, place: DataPlace) -> Job:
        async with self._starting:
            self._check_room()
            job = self._numbered(job)
            await asyncio.to_thread(self._prepare, writing, job, place)
            job = await self.note(job, "queued", {})
            self._queue.append(job.id)
        self._pump()
        return job

    async def accept_made(self, writing: Path, job: Job) -> Job:
        """Keep a model that no run made as a completed job; `writing` becomes its folder."""
        async with self._starting:
            now = time.time()
            job = replace(self._numbered(job), state="completed", started=now, ended=now)
            await asyncio.to_thread(self._settle, writing, job)
            job = await self.note(job, "completed", {"reason": ""})
        await self._forget_old()
        return job

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that run."""
        return len(self._running)

    async def cancel(self, identity: str) -> Job:
        """Ask a job to stop; one that waits stops at once.

        Raises:
            JobNotFoundError: there is none by that id.
            ControlError: it has ended.
        """
        job = self.get(identity)
        if job.over:
            raise ControlError(f"{job.id} is {job.state}")
        if identity in self._running:
            process = self._running[identity][0]
            self._cancelling.add(identity)
            process.stop()
            # reading data and planning look at no token
            self._timers.add(asyncio.get_running_loop().call_later(_STOP_SECONDS, process.kill))
            return job
        self._queue.remove(identity)
        return await self.note(job, "cancelled", {}, state="cancelled", reason="cancelled", ended=time.time())

    async def resume(self, identity: str) -> Job:
        """Queue a job again that was cancelled or failed.

        Raises:
            JobNotFoundError: there is none by that id.
            ControlError: it waits, runs or is completed.
            OverloadedError: too many wait already.
        """
        job = self.get(identity)
        if job.state not in ("cancelled", "failed"):
            raise ControlError(f"{job.id} is {job.state}: only cancelled and failed jobs are resumed")
        self._check_room()
        self._queue.append(job.id)
        job = await self.note(job, "queued", {"resumes": job.resumable}, state="queued", reason="", ended=0.0)
        self._pump()
        return job

    async def watch(self, identity: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """Events of a job after one, until it has ended.

        Raises:
            JobNotFoundError: there is none by that id.
        """
        self.get(identity)
        while identity in self._jobs and not self._closing:
            changed = self._changed.setdefault(identity, asyncio.Event())
            job = self._jobs[identity]
            if job.last_event > after:
                for event in await self.stored(self._store.events, identity, after, _EVENTS):
                    yield event
                    after = event.sequence
                continue
            if job.over:
                return
            await changed.wait()
        if self._closing:
            raise DrainingError("the server is stopping; the job goes on when it has started again")

    async def events(self, identity: str, after: int, wait: float) -> list[JobEvent]:
        """Events of a job after one; where there are none, those that come within `wait` seconds."""
        job = self.get(identity)
        if job.last_event <= after and not job.over and wait > 0:
            changed = self._changed.setdefault(identity, asyncio.Event())
            try:
                await asyncio.wait_for(changed.wait(), wait)
            except TimeoutError:
                return []
        if self._closing:
            raise DrainingError("the server is stopping; the job goes on when it has started again")
        return await self.stored(self._store.events, identity, after, _EVENTS)

    async def note(self, job: Job, kind: str, fields: dict[str, Any], **changes: Any) -> Job:
        """Store an event of a job with what it changes, and tell those who watch."""
        before = self._jobs.get(job.id)
        job = replace(before or job, last_event=(before or job).last_event + 1, **changes)
        self._jobs[job.id] = job
        try:
            await self.stored(self._store.save, job, [JobEvent(job.last_event, time.time(), kind, fields)])
        except StorageError:
            if before is None:
                del self._jobs[job.id]
            elif self._jobs[job.id] is job:
                self._jobs[job.id] = before
            raise
        if before is not None and job.over and not before.over:
            self.statistics.ended[job.state] += 1
        self._tell(job.id)
        return job

    def _tell(self, identity: str) -> None:
        if (changed := self._changed.pop(identity, None)) is not None:
            changed.set()

    def _parent(self, start: Start) -> tuple[str, int]:
        if not start.model:
            if start.version:
                raise RequestError("version: give it with a model of the repository")
            return "", 0
        if not is_name(start.model) or (start.version and not is_version(start.version)):
            raise ModelNotFoundError(f"no model {start.model[:128]!r} with a version {start.version[:32]!r}")
        served = self._plane.model(start.model, start.version)
        return served.name, served.version

    def _check_room(self) -> None:
        if self._closing or not self._plane.ready:
            raise DrainingError("the server is stopping and takes no new jobs")
        if len(self._queue) >= self.settings.queue + max(0, self.settings.jobs - len(self._running)):
            raise OverloadedError(f"{len(self._queue)} jobs wait already; try later")

    async def _collect(self, folder: Path, batches: AsyncIterator[dict[str, Any]]) -> None:
        writer = BatchWriter(folder, self.settings.data_bytes)
        try:
            async for tensors in batches:
                await asyncio.to_thread(writer.add, tensors)
            await asyncio.to_thread(writer.finish, folder / "work" / DATA_FILE)
        finally:
            writer.close()

    def _numbered(self, job: Job) -> Job:
        number = max((known.number for known in self._jobs.values()), default=0) + 1
        return replace(job, id=f"job-{number}", number=number, created=time.time())

    def _settle(self, writing: Path, job: Job) -> None:
        target = self.folder_of(job)
        shutil.rmtree(target, ignore_errors=True)  # of a server that ended before the job was stored
        target.parent.mkdir(parents=True, exist_ok=True)
        writing.rename(target)

    def _prepare(self, writing: Path, job: Job, place: DataPlace) -> None:
        """Lay out a job's folder: the base as it is now, a link to the data, the run."""
        if job.parent_model:
            source = self._plane.file(job.parent_model, int(job.parent_version)).parent
            target = writing / "work" / "models" / job.parent_model / str(job.parent_version)
            try:
                shutil.copytree(source, target)
            except FileNotFoundError:
                raise ModelUnavailableError(
                    f"model {job.parent_model!r} version {job.parent_version} is no longer in the repository"
                ) from None
        if place.target is not None:
            link = writing / "work" / place.link
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                link.symlink_to(place.target)
            except FileExistsError:
                raise RequestError(
                    f"data {place.spec[:128]!r}: the model lies there; call it by its path"
                ) from None
        (writing / "run.toml").write_text(job.configuration, "utf-8")
        (writing / "trained").mkdir()
        self._settle(writing, job)

    def _pump(self) -> None:
        while self._queue and len(self._running) < self.settings.jobs and not self._closing:
            identity = self._queue.pop(0)
            process = TaskProcess(self.folder_of(self._jobs[identity]) / "log")
            task = asyncio.get_running_loop().create_task(self._run(identity, process))
            self._running[identity] = (process, task)

    async def _run(self, identity: str, process: TaskProcess) -> None:
        try:
            await self._run_to_end(identity, process)
        except StorageError as error:
            # what is stored says that it runs: a server that starts takes it up again
            _LOG.error("%s: %s", identity, error)
            job = self._jobs[identity]
            self._jobs[identity] = replace(
                job,
                state="failed",
                reason=self._reason(str(error)),
                ended=time.time(),
                resumable=(self.folder_of(job) / "checkpoint").is_file(),
            )
            self.statistics.stopped(identity, time.time() - job.started)
            self.statistics.ended["failed"] += 1
            self._tell(identity)
        finally:
            self._running.pop(identity, None)
            self._cancelling.discard(identity)
            self._pump()

    async def _run_to_end(self, identity: str, process: TaskProcess) -> None:
        job = await self.note(self._jobs[identity], "running", {}, state="running", started=time.time())
        folder = self.folder_of(job)
        events: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue()
        noting = asyncio.get_running_loop().create_task(self._note_all(identity, events))
        # a run that nobody can be told of is not gone on with
        noting.add_done_callback(lambda _: process.kill())
        task = self.task(
            job,
            "train",
            folder=str(folder / "work"),
            run=str(folder / "run.toml"),
            output=str(self.trained(job)),
            checkpoint=str(folder / "checkpoint"),
        )
        state: JobState = "failed"
        reason = ""
        changes: dict[str, Any] = {}
        begun = time.monotonic()
        self.statistics.started(identity)
        try:
            async with asyncio.timeout(self.settings.max_seconds):
                found = await process.run(task, lambda kind, _, fields: events.put_nowait((kind, fields)))
            if found["status"] == "cancelled":
                state, reason = "cancelled", "cancelled"
            else:
                state, reason = "completed", found["reason"]
                changes = {"figures": _numbers(found["figures"]), "sha256": found["sha256"]}
                changes["data_hash"] = found["data_hash"]
        except TimeoutError:
            reason = f"it ran longer than {self.settings.max_seconds:g} s"
        except ExecutionError as error:
            _LOG.error("%s failed: %s", identity, error)
            reason = "internal error; the job's log on the server has the details"
        except OnwardError as error:
            reason = self._reason(str(error))
        except asyncio.CancelledError:
            if not self._closing:
                raise
        except Exception:  # noqa: BLE001 - one job must not end the others
            _LOG.exception("%s failed", identity)
            reason = "internal error; the server's log has the details"
        events.put_nowait(None)
        await noting
        self.statistics.stopped(identity, time.monotonic() - begun)
        changes["resumable"] = (folder / "checkpoint").is_file()
        if self._closing and state != "completed":
            await self.note(job, "interrupted", {"resumes": changes["resumable"]}, state="queued", **changes)
            return
        if identity in self._cancelling and state == "failed":
            state, reason = "cancelled", "cancelled"
        await self.note(
            job, state, {"reason": reason}, state=state, reason=reason, ended=time.time(), **changes
        )
        await self._forget_old()

    async def _note_all(
        self, identity: str, events: asyncio.Queue[tuple[str, dict[str, Any]] | None]
    ) -> None:
        while (entry := await events.get()) is not None:
            kind, fields = entry
            if kind in ("progress", "epoch"):
                self.statistics.progressed(identity, fields["rows"])
            job = self._jobs[identity]
            changes: dict[str, Any] = {}
            if kind == "progress":
                changes = {"epoch": fields["epoch"], "step": fields["step"]}
                changes["figures"] = {**job.figures, **_numbers({"loss": fields["loss"]})}
            elif kind == "epoch":
                changes = {"epoch": fields["epoch"], "figures": {**job.figures, **_numbers(fields["row"])}}
            elif kind == "checkpoint":
                changes = {"step": fields["step"], "resumable": True}
            await self.note(job, kind, self._public(fields), **changes)

    def _public(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._reason(value)
        if isinstance(value, dict):
            return {key: self._public(entry) for key, entry in value.items()}
        return [self._public(entry) for entry in value] if isinstance(value, list) else value

    async def _forget_old(self) -> None:
        ended = sorted((job for job in self._jobs.values() if job.over), key=lambda job: job.number)
        for job in ended[: max(0, len(ended) - self.settings.keep)]:
            del self._jobs[job.id]
            await self.stored(self._store.forget, job)
            await asyncio.to_thread(shutil.rmtree, self.folder_of(job), True)


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in figures.items()}
