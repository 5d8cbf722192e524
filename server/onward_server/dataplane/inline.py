"""Runs of microseconds in the server's own process, for input shapes that a worker has shown to be quick."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor as Pool
from pathlib import Path
from typing import TypeAlias, final

from onward.errors import OnwardError
from onward.graph import Array
from onward_server.dataplane.executors import Executor, OnwardExecutor

__all__ = ["Inline", "Signature", "is_harmless", "signature"]

_LOG = logging.getLogger(__name__)
_SAMPLES = 3
_MOST_SAMPLES = 50
_MAX_SIGNATURES = 16
_MAX_FILE_BYTES = 32 << 20
_SLOW_RUNS = 8
_SLOW = 10

_UNBOUNDED = frozenset(
    (
        *("If", "Loop", "Scan", "SequenceMap", "ConstantOfShape", "Expand", "Tile", "Range", "Resize"),
        *("Upsample", "Pad", "OneHot", "Unique", "MaxUnpool", "Col2Im", "CenterCropPad"),
        *("RandomNormal", "RandomUniform", "StringSplit", "RegexFullMatch"),
    )
)
"""Operators whose time or output size can follow from values, not from the shapes that were measured."""

Signature: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]


def signature(inputs: Mapping[str, Array]) -> Signature:
    """The shapes of a request's inputs."""
    return tuple((name, array.shape) for name, array in inputs.items())


def is_harmless(path: Path) -> bool:
    """Whether a model's time and memory follow from the shapes of its inputs alone."""
    from onward.model import load

    model = load(path)
    graphs = [model.graph, *model.functions.values()]
    return not any(node.op_type in _UNBOUNDED for graph in graphs for node in graph)


@final
class Inline:
    """Decides which input shapes run here, and runs them. Each has a session of its own, so that no run waits
    for the plan of another.

    Args:
        path: the model file, which a worker has opened.
        threads: of one run.
        limit_us: microseconds that a run may take.
        pool: where models are opened and planned.
        title: what logs call the model.
    """

    def __init__(self, path: Path, threads: int, limit_us: float, pool: Pool, title: str) -> None:
        self._path = path
        self._threads = threads
        self._limit_ns = limit_us * 1e3
        self._pool = pool
        self._title = title
        self._samples: dict[Signature, list[int]] = {}
        self._ready: dict[Signature, Executor] = {}
        self._slow: dict[Signature, int] = {}
        self._off = path.stat().st_size > _MAX_FILE_BYTES

    @property
    def is_used(self) -> bool:
        """Whether requests of any shapes run here."""
        return bool(self._ready)

    def has(self, shapes: Signature) -> bool:
        """Whether requests of these shapes run here."""
        return shapes in self._ready

    def run(
        self, shapes: Signature, inputs: Mapping[str, Array], outputs: Sequence[str] | None
    ) -> tuple[dict[str, Array], int]:
        """Outputs, and the nanoseconds that they took. Raises what the engine raises."""
        start = time.perf_counter_ns()
        found = self._ready[shapes].run(inputs, outputs)
        took = time.perf_counter_ns() - start
        if took > self._limit_ns * _SLOW:
            # once in a while the machine is busy; a model that stays slow goes back to the worker
            self._slow[shapes] = self._slow.get(shapes, 0) + 1
            if self._slow[shapes] >= _SLOW_RUNS:
                self._ready.pop(shapes)
                _LOG.warning("%s: runs of %s go to a worker again: they became slow", self._title, shapes)
        elif shapes in self._slow:
            del self._slow[shapes]
        return found, took

    def observe(self, shapes: Signature, inputs: Mapping[str, Array], ns: int) -> None:
        """Learn what a worker took for one request."""
        if self._off or len(self._ready) >= _MAX_SIGNATURES:
            return
        if len(self._samples) > 16 * _MAX_SIGNATURES:
            self._samples.clear()
        samples = self._samples.setdefault(shapes, [])
        if len(samples) >= _MOST_SAMPLES:
            return
        samples.append(ns)
        # other work on the machine only adds to a time: the shortest one is the run's own
        if len(samples) >= _SAMPLES and min(samples) <= self._limit_ns:
            samples.extend([ns] * (_MOST_SAMPLES - len(samples)))
            try:
                self._pool.submit(self._open, shapes, dict(inputs))
            except RuntimeError:
                self._off = True

    def close(self) -> None:
        """Run nothing here any more."""
        self._off = True
        self._ready.clear()

    def _open(self, shapes: Signature, inputs: Mapping[str, Array]) -> None:
        try:
            if self._off or not is_harmless(self._path):
                self._off = True
                return
            executor = OnwardExecutor(self._path, self._threads, one_size=True)
            executor.run(inputs)
            took = []
            for _ in range(_SAMPLES):
                start = time.perf_counter_ns()
                executor.run(inputs)
                took.append(time.perf_counter_ns() - start)
        except OnwardError as error:
            _LOG.warning("%s stays in its worker: %s", self._title, error)
            self._off = True
            return
        if min(took) <= self._limit_ns and not self._off:
            self._ready[shapes] = executor
            _LOG.info(
                "%s: runs of %s take %.0f us and stay in the server's process",
                self._title,
                ", ".join(f"{name}{list(shape)}" for name, shape in shapes),
                min(took) / 1e3,
            )
