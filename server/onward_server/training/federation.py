"""Primitives of federated training: parameters as one flat buffer, deltas of contributors, their mean."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from onward_server.dataplane import DataPlane
from onward_server.dataplane.repository import MODEL_FILE, is_name
from onward_server.errors import ControlError, MemoryLimitError, RequestError
from onward_server.storage import kept
from onward_server.training.store import Job

if TYPE_CHECKING:
    from onward_server.training.service import TrainingService

__all__ = ["Federation", "Layout", "Parameters"]

_CONTRIBUTORS = 10_000
_WEIGHTS = "weights.json"


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parameters of a version lie in its buffer of float32, one after the other."""

    model: str
    version: int
    entries: tuple[tuple[str, tuple[int, ...]], ...]
    count: int


@final
@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a version: little-endian float32, as `layout` says."""

    layout: Layout
    buffer: bytes


@final
class Federation:
    """Gets, sets and averages parameters of versions of the repository.

    Args:
        service: its processes and folder.
        plane: what is served.
    """

    def __init__(self, service: TrainingService, plane: DataPlane, folder: Path) -> None:
        self._service = service
        self._plane = plane
        self._folder = folder / "rounds"
        self._scratch = folder / "incoming"
        self._layouts: dict[tuple[str, int], Layout] = {}
        self._lock = asyncio.Lock()

    async def parameters(self, model: str, version: str) -> Parameters:
        """The parameters of a version, running statistics included.

        Raises:
            ModelNotFoundError, ModelUnavailableError: there is no such version.
            OnwardError: its file cannot be read.
        """
        served = self._plane.model(model, version)
        return await self._parameters(served.name, served.version)

    async def set(self, model: str, version: str, buffer: bytes, title: str) -> Job:
        """A version with other parameters, as a completed job that can be promoted.

        Raises:
            RequestError: the buffer does not fit.
            ModelNotFoundError, ModelUnavailableError: there is no such version.
        """
        layout = (await self.parameters(model, version)).layout
        values = _checked(buffer, layout)
        return await self._made(layout, values, title or "parameters that were set")

    async def submit(
        self, model: str, version: str, name: str, contributor: str, weight: float, buffer: bytes
    ) -> tuple[int, float]:
        """Keep what a contributor's parameters differ by from a version's; a second one replaces the first.

        Returns:
            How many contributors the round has, and the sum of their weights.

        Raises:
            RequestError: a name, the weight or the buffer does not fit.
            ModelNotFoundError, ModelUnavailableError: there is no such version.
            MemoryLimitError: the round has too much already.
        """
        _check_names(round=name, contributor=contributor)
        if not 0 < weight < float("inf"):
            raise RequestError(f"weight is {weight}; give a number above 0, such as the count of samples")
        layout = await self._layout(model, version)
        values = _checked(buffer, layout)
        async with self._lock:
            with kept("the delta"):
                return await asyncio.to_thread(self._keep, layout, name, contributor, weight, values)

    async def average(self, model: str, version: str, name: str, at_least: int, title: str) -> Job:
        """The version plus the weighted mean of a round's deltas, as a completed job that can be promoted.

        Raises:
            RequestError: the round's name is none.
            ControlError: the round has not enough contributors.
            ModelNotFoundError, ModelUnavailableError: there is no such version.
        """
        _check_names(round=name)
        found = await self.parameters(model, version)
        base = np.frombuffer(found.buffer, "<f4").astype(np.float64)
        async with self._lock:
            total, count = await asyncio.to_thread(self._sum, found.layout, name)
        if count < max(at_least, 1):
            raise ControlError(f"round {name!r} has {count} contributors; {max(at_least, 1)} are asked for")
        values = (base + total).astype("<f4")
        return await self._made(found.layout, values, title or f"round {name} of {count} contributors")

    async def _layout(self, model: str, version: str) -> Layout:
        served = self._plane.model(model, version)
        known = self._layouts.get((served.name, served.version))
        return known or (await self._parameters(served.name, served.version)).layout

    async def _parameters(self, name: str, version: int) -> Parameters:
        with kept("the server's scratch folder"):
            self._scratch.mkdir(parents=True, exist_ok=True)
        target = self._scratch / f"{time.time_ns():x}.parameters"
        try:
            found = await self._service.promotions.run(
                "parameters", model=str(self._plane.file(name, version)), target=str(target.absolute())
            )
            buffer = await asyncio.to_thread(target.read_bytes)
        finally:
            target.unlink(missing_ok=True)
        entries = tuple((entry, tuple(shape)) for entry, shape in found["entries"])
        layout = Layout(name, version, entries, len(buffer) // 4)
        self._layouts[name, version] = layout
        return Parameters(layout, buffer)

    def _round(self, layout: Layout, name: str) -> Path:
        return self._folder / layout.model / str(layout.version) / name

    def _keep(
        self, layout: Layout, name: str, contributor: str, weight: float, values: np.ndarray[Any, Any]
    ) -> tuple[int, float]:
        folder = self._round(layout, name)
        folder.mkdir(parents=True, exist_ok=True)
        weights = self._weights(folder)
        weights[contributor] = weight
        if len(weights) > _CONTRIBUTORS or len(weights) * values.nbytes > self._service.settings.data_bytes:
            raise MemoryLimitError(f"round {name!r} has {len(weights) - 1} deltas already, as many as it may")
        for target, content in (
            (folder / f"{contributor}.delta", values.tobytes()),
            (folder / _WEIGHTS, json.dumps(weights).encode()),
        ):
            part = target.with_name(target.name + ".part")
            try:
                part.write_bytes(content)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        return len(weights), sum(weights.values())

    def _weights(self, folder: Path) -> dict[str, float]:
        try:
            found: dict[str, float] = json.loads((folder / _WEIGHTS).read_text())
        except FileNotFoundError:
            return {}
        return found

    def _sum(self, layout: Layout, name: str) -> tuple[np.ndarray[Any, Any], int]:
        folder = self._round(layout, name)
        weights = self._weights(folder)
        mean = np.zeros(layout.count)
        whole = sum(weights.values())
        for contributor in sorted(weights):
            delta = np.frombuffer((folder / f"{contributor}.delta").read_bytes(), "<f4")
            mean += delta * (weights[contributor] / whole)
        return mean, len(weights)

    async def _made(self, layout: Layout, values: np.ndarray[Any, Any], title: str) -> Job:
        writing = self._scratch / f"{time.time_ns():x}"
        try:
            with kept("the job's folder"):
                for part in ("work", "trained"):
                    await asyncio.to_thread((writing / part).mkdir, parents=True)
                await asyncio.to_thread((writing / "buffer").write_bytes, values.tobytes())
            found = await self._service.promotions.run(
                "combine",
                model=str(self._plane.file(layout.model, layout.version)),
                buffer=str((writing / "buffer").absolute()),
                output=str((writing / "trained" / MODEL_FILE).absolute()),
            )
            await asyncio.to_thread((writing / "buffer").unlink)
            job = Job(
                id="",
                number=0,
                title=title[:200],
                parent_model=layout.model,
                parent_version=layout.version,
                sha256=found["sha256"],
                data_hash=found["data_hash"],
            )
            return await self._service.whole(self._service.accept_made(writing, job))
        finally:
            await asyncio.to_thread(shutil.rmtree, writing, True)


def _check_names(**names: str) -> None:
    for field, name in names.items():
        if not is_name(name):
            raise RequestError(f"{field} {name[:128]!r}: give at most 128 letters, digits, '.', '_' and '-'")


def _checked(buffer: bytes, layout: Layout) -> np.ndarray[Any, Any]:
    if len(buffer) != 4 * layout.count:
        raise RequestError(
            f"buffer has {len(buffer)} bytes; the {layout.count} parameters of {layout.model!r} version "
            f"{layout.version} take {4 * layout.count}, as float32"
        )
    values = np.frombuffer(buffer, "<f4")
    if not np.isfinite(values).all():
        raise RequestError("buffer has values that are not finite")
    return values
