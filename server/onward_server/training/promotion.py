"""From what a job has trained to a version that is served, and back."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from onward.errors import StorageError
from onward_server.dataplane import DataPlane
from onward_server.dataplane.repository import is_name, is_version
from onward_server.errors import (
    ControlError,
    DrainingError,
    GateError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
    RequestError,
    StorageFullError,
)
from onward_server.storage import kept
from onward_server.training.process import TaskProcess
from onward_server.training.requests import data_place
from onward_server.training.store import Job, LineageRecord, Store

if TYPE_CHECKING:
    from onward_server.training.service import TrainingService

__all__ = ["Evaluate", "Promote", "Promotions"]

_SAMPLES = 64
_WAITING = 8
_WITHDRAWN = ".withdrawn-"
_PARTS = ("test", "validation", "train", "all")


@final
@dataclass(frozen=True, slots=True)
class Evaluate:
    """What is to be measured: a job's model, or a version of the repository.

    Attributes:
        job: its id; empty: `model` and `version`.
        data: `KIND:PATH`; empty: what the model was trained on.
        part: of the data.
    """

    job: str = ""
    model: str = ""
    version: str = ""
    data: str = ""
    part: str = "test"


@final
@dataclass(frozen=True, slots=True)
class Promote:
    """What is to be served.

    Attributes:
        job: its id.
        model: the name to serve it as; empty: that of the model that was trained further.
        at_least, at_most: figures beside those of the settings.
        other_interface: whether inputs and outputs may be others than those served now.
    """

    job: str
    model: str = ""
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    other_interface: bool = False


@final
class Promotions:
    """Evaluates, promotes, rolls back, and knows where versions come from.

    Args:
        service: its jobs and processes.
        plane: what serves.
        store: of the lineage.
    """

    def __init__(self, service: TrainingService, plane: DataPlane, store: Store) -> None:
        self._service = service
        self._plane = plane
        self._store = store
        self._one = asyncio.Semaphore(1)
        self._waiting = 0
        self._processes: set[TaskProcess] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._closed = False

    async def evaluate(self, request: Evaluate) -> dict[str, Any]:
        """Figures on a data set, and what a comparison with onnxruntime finds.

        Raises:
            JobNotFoundError, ModelNotFoundError, ModelUnavailableError: there is no such thing.
            ControlError: the job has trained nothing.
            RequestError: data or part do not fit.
            OverloadedError: too many wait already.
            OnwardError: what the evaluation raised.
        """
        if request.part not in _PARTS:
            raise RequestError(f"part {request.part[:64]!r}: give {', '.join(_PARTS)}")
        if bool(request.job) == bool(request.model):
            raise RequestError("give the id of a job, or a model of the repository")
        place = None
        if request.data:
            roots = self._service.settings.data_roots
            place = await asyncio.to_thread(data_place, request.data, roots)
            if place.url:
                raise RequestError(
                    "data: an evaluation fetches nothing; give a path below the server's data_roots"
                )
        data = "" if place is None else place.spec
        if place is not None and place.target is not None:
            data = f"{place.spec.partition(':')[0]}:{place.target}"
        if request.job:
            job = self._trained(request.job)
            return await self._measure(job, self._service.trained(job), data, request.part)
        if not is_name(request.model):
            raise ModelNotFoundError(f"no model {request.model[:128]!r}")
        served = self._plane.model(request.model, request.version)
        path = await asyncio.to_thread(self._plane.file, served.name, served.version)
        lineage = await self._service.stored(self._store.lineage, served.name)
        jobs = [entry.job for entry in lineage if entry.version == served.version]
        found = [job for job in self._service.jobs(limit=1 << 30) if job.id in jobs]
        return await self._measure(found[0] if found else None, path, data, request.part)

    async def promote(self, request: Promote) -> LineageRecord:
        """Serve what a job has trained as the newest version of a model.

        Raises:
            JobNotFoundError: there is no such job.
            ControlError: it has trained nothing, the repository cannot be written, or the model is served
                from files that a client sent.
            RequestError: a name or a figure is unknown.
            GateError: a figure, the comparison with onnxruntime or the interface refuses it.
            ModelUnavailableError: it could not be loaded; what was served before still is.
        """
        job = self._trained(request.job)
        name = request.model or job.parent_model
        if not is_name(name):
            raise RequestError(
                f"model {name[:128]!r}: give a name to serve it as; "
                "at most 128 letters, digits, '.', '_' and '-'"
            )
        self._refuse_alias(name)
        self._plane.check_repository(name)
        self._check_figures(job, request)
        return await self._service.whole(self._promote(job, name, request))

    async def _promote(self, job: Job, name: str, request: Promote) -> LineageRecord:
        async with self._lock(name):
            source = self._service.trained(job)
            found = await self._measure(job, source, "", "test", interface=True)
            if not found["passed"]:
                raise GateError(f"onnxruntime does not agree with it: {found['difference']}")
            self._check_interface(name, found["interface"], request.other_interface)
            folder = self._plane.settings.repository / name
            version = await asyncio.to_thread(_copied, source.parent, folder, job)
            entry = LineageRecord(
                model=name,
                version=version,
                job=job.id,
                parent_model=job.parent_model,
                parent_version=job.parent_version,
                data_hash=job.data_hash,
                configuration=job.configuration,
                metrics=job.figures,
                sha256=job.sha256,
                promoted=time.time(),
                max_absolute_error=found["max_absolute_error"],
            )
            ready = folder / f".new-{job.id}"
            try:
                await self._service.stored(self._store.record, entry)
                await asyncio.to_thread(ready.rename, folder / str(version))
                await self._plane.publish(name, version)
            except BaseException:
                await asyncio.to_thread(shutil.rmtree, folder / str(version), True)
                await asyncio.to_thread(shutil.rmtree, ready, True)
                with suppress(StorageError):
                    await self._service.stored(self._store.drop, entry)
                raise
            return entry

    async def rollback(self, name: str) -> tuple[int, int]:
        """Withdraw the newest version of a model.

        Returns:
            The version that was withdrawn, and the one that answers now.

        Raises:
            ModelNotFoundError: it is not served.
            ControlError: there is no version before, the repository cannot be written, or the model is served
                from files that a client sent.
            ModelUnavailableError: that could not be loaded; what was served before still is.
        """
        if not is_name(name):
            raise ModelNotFoundError(f"no model {name[:128]!r}")
        self._refuse_alias(name)
        self._plane.check_repository(name)
        return await self._service.whole(self._roll_back(name))

    async def _roll_back(self, name: str) -> tuple[int, int]:
        async with self._lock(name):
            newest = self._plane.model(name).version
            folder = self._plane.settings.repository / name
            with _repository():
                before = [number for number in _numbers(folder) if number < newest]
            if not before:
                raise ControlError(f"model {name!r} has no version before {newest}")
            here, away = folder / str(newest), folder / f"{_WITHDRAWN}{newest}"
            await self._service.stored(self._store.withdraw, name, newest, time.time())
            try:
                with _repository():
                    here.rename(away)
                try:
                    await self._plane.publish(name, max(before))
                except BaseException:
                    away.rename(here)
                    raise
            except BaseException:
                with suppress(StorageError):
                    await self._service.stored(self._store.withdraw, name, newest, 0.0)
                raise
            return newest, max(before)

    async def lineage(self, name: str, version: str = "") -> list[LineageRecord]:
        """Where versions come from, the newest first.

        Raises:
            ModelNotFoundError: none of that name came from a job.
        """
        found = await self._service.stored(self._store.lineage, name) if is_name(name) else []
        found = [entry for entry in found if not version or str(entry.version) == version]
        if not found:
            raise ModelNotFoundError(
                f"no version {version[:32]}".rstrip() + f" of {name[:128]!r} came from a job"
            )
        return found

    def close(self) -> None:
        """End what is being measured."""
        self._closed = True
        for process in self._processes:
            process.kill()

    def _refuse_alias(self, name: str) -> None:
        if name in self._plane.settings.aliases and name not in self._plane.names:
            raise ControlError(f"{name!r} is an alias; name the model")

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _trained(self, identity: str) -> Job:
        job = self._service.get(identity)
        if job.state != "completed":
            raise ControlError(f"{job.id} is {job.state}: it has trained nothing yet")
        return job

    async def _measure(
        self, job: Job | None, path: Path, data: str, part: str, *, interface: bool = False
    ) -> dict[str, Any]:
        folder = path.parent if job is None else self._service.folder_of(job) / "work"
        if interface and job is not None:
            await asyncio.to_thread(_check_content, path, job)
        return await self.run(
            "evaluate",
            job,
            folder=str(folder),
            model=str(path.absolute()),
            data=data,
            part=part,
            samples=_SAMPLES,
            # what a file says of its data is no permission to read them
            bundled=(job is None or not job.configuration) and not data,
            interface=interface,
        )

    async def run(self, task: str, job: Job | None = None, **fields: Any) -> dict[str, Any]:
        """A short task in a process of its own, one after the other.

        Raises:
            OverloadedError: too many wait already.
            OnwardError: what the task raised.
        """
        if self._closed:
            raise DrainingError("the server is stopping")
        if self._waiting >= _WAITING:
            raise OverloadedError(f"{self._waiting} evaluations wait already; try later")
        folder = self._service.settings.folder.absolute()
        self._waiting += 1
        try:
            async with self._one, asyncio.timeout(self._service.settings.max_seconds):
                process = TaskProcess(folder / "evaluations.log")
                self._processes.add(process)
                try:
                    told = self._service.task(job, task, **{"folder": str(folder), **fields})
                    return await process.run(told, lambda *_: None)
                finally:
                    self._processes.discard(process)
        except TimeoutError:
            raise ControlError("the evaluation took longer than training.max_seconds") from None
        finally:
            self._waiting -= 1

    def _check_figures(self, job: Job, request: Promote) -> None:
        settings = self._service.settings
        for word, own, asked in (
            ("at least", settings.at_least, request.at_least),
            ("at most", settings.at_most, request.at_most),
        ):
            sharper = max if word == "at least" else min
            for name in dict.fromkeys((*own, *asked)):
                if name not in job.figures:
                    known = ", ".join(job.figures) or "none"
                    raise RequestError(f"{job.id} has no figure {name[:64]!r}; it has {known}")
                bound = sharper(bounds[name] for bounds in (own, asked) if name in bounds)
                have = job.figures[name]
                if not (have >= bound if word == "at least" else have <= bound):
                    raise GateError(f"{name} of {job.id} is {have:.6g}; {word} {bound:g} is asked for")

    def _check_interface(self, name: str, found: Mapping[str, list[str]], other: bool) -> None:
        if other:
            return
        try:
            served = self._plane.model(name)
        except (ModelNotFoundError, ModelUnavailableError):
            return
        for kind, specs in (("inputs", served.inputs), ("outputs", served.outputs)):
            have = list(map(str, specs))
            if have != found[kind]:
                raise GateError(
                    f"its {kind} are {', '.join(found[kind])}; clients of {name!r} know {', '.join(have)}. "
                    "allow_other_interface promotes it nevertheless"
                )


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.is_dir() and is_version(path.name)]


def _copied(source: Path, folder: Path, job: Job) -> int:
    """Copy a trained model beside the versions of a model; the number that it will have."""
    ready = folder / f".new-{job.id}"
    shutil.rmtree(ready, ignore_errors=True)
    try:
        with _repository():
            folder.mkdir(exist_ok=True)
            shutil.copytree(source, ready)
    except BaseException:
        shutil.rmtree(ready, ignore_errors=True)
        raise
    gone = [path.name.removeprefix(_WITHDRAWN) for path in folder.glob(f"{_WITHDRAWN}*")]
    return max([*_numbers(folder), *(int(name) for name in gone if is_version(name))], default=0) + 1


@contextmanager
def _repository() -> Iterator[None]:
    """Around changes of the repository, which may be one that the server can only read."""
    try:
        with kept("the repository"):
            yield
    except StorageFullError:
        raise
    except StorageError as error:
        raise ControlError(str(error)) from error


def _check_content(path: Path, job: Job) -> None:
    try:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise StorageError(f"the model of {job.id} cannot be read: {error.strerror}") from error
    if content != job.sha256:
        raise GateError(f"the file of {job.id} is not the one that it wrote")
