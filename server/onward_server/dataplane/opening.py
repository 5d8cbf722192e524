"""From an entry of the repository to a version that answers: engines, fallback, warm-up, batching checked."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from concurrent.futures import Executor as Pool
from pathlib import Path
from typing import final

import numpy as np

from onward.errors import ConfigError, ModelError, OnwardError, UnsupportedError
from onward.graph import Array, TensorSpec
from onward.processors import usable_cores
from onward_server.dataplane.batching import check_batchable, filled_size, probe, split
from onward_server.dataplane.budget import Budget
from onward_server.dataplane.hosts import Host, Instance, ModelFile
from onward_server.dataplane.inline import Inline
from onward_server.dataplane.repository import Entry
from onward_server.dataplane.scheduler import Scheduler
from onward_server.dataplane.served import ServedModel
from onward_server.dataplane.statistics import InferStatistics
from onward_server.model_settings import BatchingSettings, CrossCheckSettings, Engine, ModelSettings
from onward_server.settings import ServerSettings

__all__ = ["Opener", "effective"]

_LOG = logging.getLogger(__name__)
_PROBE_ROWS = 3


def effective(model: ModelSettings, server: ServerSettings) -> ModelSettings:
    """A model's settings with the server's in the place of those that it leaves open."""
    shared = ("engine", "fallback", "cross_check", "threads", "instances", "queue_size")
    names = (*shared, "run_timeout", "in_process")
    unset = {name: getattr(server, name) for name in names if getattr(model, name) is None}
    return model.model_copy(update=unset)


@final
class Opener:
    """Opens versions.

    Args:
        host: where models run.
        in_process: whether quick runs may skip it.
        pool: where those are opened.
    """

    def __init__(self, host: Host, in_process: bool, in_process_us: float, pool: Pool) -> None:
        self._budget = Budget(usable_cores())
        self._host = host
        self._in_process = in_process
        self._in_process_us = in_process_us
        self._pool = pool

    async def open(self, entry: Entry, settings: ModelSettings) -> ServedModel:
        """Open, warm up and check a version.

        Args:
            entry: without a problem.
            settings: from `effective`.

        Raises:
            OnwardError: why it cannot be served.
        """
        assert settings.engine is not None
        title = f"model {entry.name!r} version {entry.version}"
        check = settings.cross_check or CrossCheckSettings()
        file = ModelFile(entry.path, settings.engine, settings.threads or 1, title)
        file, first, reason = await self._first(file, settings, check)
        witness = None
        try:
            if reason:
                check = check.model_copy(update={"policy": "off"})
            if check.policy != "off":
                witness = await self._witness(file, awaited=not check.answers_first)
            batching = settings.batching
            if batching is not None:
                check_batchable(first.inputs, first.outputs)
            await _warm_up(first, settings, fill=file.engine == "onward")
            labels = _labels(entry, settings)
        except BaseException:
            first.close()
            if witness is not None:
                witness.close()
            raise
        statistics = InferStatistics()
        scheduler = Scheduler(
            first,
            lambda: self._further(file, settings),
            instances=settings.instances or 1,
            batching=batching,
            fill=file.engine == "onward",
            queue_size=256 if settings.queue_size is None else settings.queue_size,
            run_timeout=settings.run_timeout or 60.0,
            statistics=statistics,
        )
        inline = None
        if self._in_process and settings.in_process == "auto" and file.engine == "onward":
            inline = Inline(entry.path, file.threads, self._in_process_us, self._pool, title)
        return ServedModel(
            entry.name,
            entry.version,
            settings=settings,
            engine=file.engine,
            reason=reason,
            check=check,
            budget=self._budget,
            first=first,
            scheduler=scheduler,
            statistics=statistics,
            witness=witness,
            locate=functools.partial(self._host.locate, file),
            inline=inline,
            labels=labels,
        )

    async def _first(
        self, file: ModelFile, settings: ModelSettings, check: CrossCheckSettings
    ) -> tuple[ModelFile, Instance, str]:
        try:
            return file, await self._host.open(file), ""
        except UnsupportedError as error:
            if file.engine != "onward" or not settings.fallback:
                raise
            if check.policy != "off" and check.on_mismatch != "log":
                raise UnsupportedError(
                    f"{error}; onnxruntime could serve it, but not with cross_check.on_mismatch = "
                    f"{check.on_mismatch!r}, which needs both engines"
                ) from None
            other = ModelFile(file.path, "onnxruntime", file.threads, file.title)
            instance = await self._host.open(other)
            _LOG.warning("%s is served by onnxruntime, without a cross-check: %s", file.title, error)
            return other, instance, str(error)

    async def _witness(self, file: ModelFile, *, awaited: bool) -> Instance:
        other: Engine = "onnxruntime" if file.engine == "onward" else "onward"
        try:
            model = ModelFile(file.path, other, file.threads, file.title)
            return await self._host.open_witness(model, awaited=awaited)
        except ModelError as error:
            raise ModelError(f"{other}, the cross-check's witness: {error}") from error

    async def _further(self, file: ModelFile, settings: ModelSettings) -> Instance:
        instance = await self._host.open(file)
        try:
            await _warm_up(instance, settings, fill=file.engine == "onward")
        except BaseException:
            instance.close()
            raise
        return instance


async def _warm_up(instance: Instance, settings: ModelSettings, *, fill: bool) -> None:
    timeout = settings.run_timeout or 60.0
    specs = {spec.name: spec for spec in instance.inputs}
    for shapes in settings.warm_up:
        await instance.run(_filled(specs, shapes), None, timeout)
    batching = settings.batching
    if batching is None:
        return
    await _check_rows(instance, batching, timeout)
    if not fill:
        return
    for size in sorted({filled_size(rows, batching.max_batch) for rows in range(1, batching.max_batch + 1)}):
        await instance.run(_batch(instance, settings, size), None, timeout)


def _batch(instance: Instance, settings: ModelSettings, rows: int) -> dict[str, Array]:
    batch = probe(instance.inputs, rows)
    for shapes in settings.warm_up[:1]:
        specs = {spec.name: spec for spec in instance.inputs}
        single = _filled(specs, shapes)
        batch = {name: np.repeat(array[:1], rows, axis=0) for name, array in single.items()}
    return batch


def _filled(specs: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    if set(shapes) != set(specs):
        raise ConfigError(f"warm_up: give a shape for each of the inputs {', '.join(sorted(specs))}")
    arrays: dict[str, Array] = {}
    for name, shape in shapes.items():
        if any(extent < 0 for extent in shape) or not specs[name].admits(tuple(shape)):
            raise ConfigError(f"warm_up: shape {list(shape)} does not fit input {specs[name]}")
        if specs[name].dtype == object:
            arrays[name] = np.full(shape, "", dtype=object)
        else:
            arrays[name] = np.zeros(shape, specs[name].dtype)
    return arrays


async def _check_rows(instance: Instance, batching: BatchingSettings, timeout: float) -> None:
    """Refuse a model that answers a row differently when other rows are beside it."""
    rows = min(_PROBE_ROWS, batching.max_batch)
    inputs = probe(instance.inputs, rows)
    try:
        together = split((await instance.run(inputs, None, timeout)).outputs, [1] * rows, rows)
        apart = [
            (await instance.run({k: v[row : row + 1] for k, v in inputs.items()}, None, timeout)).outputs
            for row in range(rows)
        ]
    except OnwardError as error:
        raise ConfigError(f"batching: a batch of {rows} rows fails: {error}") from error
    for row in range(rows):
        for name, wanted in apart[row].items():
            found = together[row][name]
            if found.shape != wanted.shape or not _close(found, wanted):
                raise ConfigError(
                    f"batching: output {name!r} of a row depends on the rows beside it; this model cannot be "
                    "batched"
                )


def _close(found: Array, wanted: Array) -> bool:
    if found.dtype == object or found.dtype.kind in "iub":
        return bool(np.array_equal(found, wanted))
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    scale = float(np.max(np.abs(b[np.isfinite(b)]), initial=0.0))
    loose = 1e-2 if found.dtype.itemsize < 4 else 1e-4
    return bool(np.allclose(a, b, rtol=loose, atol=loose * scale, equal_nan=True))


def _labels(entry: Entry, settings: ModelSettings) -> list[str]:
    if settings.labels is None:
        return []
    if Path(settings.labels).name != settings.labels:
        raise ConfigError(f"labels {settings.labels!r}: give the name of a file beside config.toml")
    try:
        return (entry.folder / settings.labels).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"labels {settings.labels!r}: {error}") from error
