"""The queue of one version of a model, and the instances that empty it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from onward.errors import InputError, OnwardError, ShapeError
from onward.graph import Array
from onward_server.dataplane.batching import BatchKey, batch_key, filled_size, joined, rows_of, split
from onward_server.dataplane.hosts import Instance
from onward_server.dataplane.statistics import InferStatistics
from onward_server.errors import DeadlineError, ExecutionError, ModelUnavailableError, OverloadedError
from onward_server.model_settings import BatchingSettings

__all__ = ["Computed", "Scheduler"]

_LOG = logging.getLogger(__name__)
_SMOOTHING = 0.1


@final
@dataclass(frozen=True, slots=True)
class Computed:
    """A request's outputs, how long it waited, and what the engine took for its batch.

    Attributes:
        outputs: arrays by name.
        queue_ns: from arrival to the start of its run.
        infer_ns: of the engine, for the whole batch.
        alone: whether nothing was joined to it.
    """

    outputs: dict[str, Array]
    queue_ns: int
    infer_ns: int
    alone: bool


@final
@dataclass(slots=True)
class _Job:
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] | None
    deadline: float | None
    future: asyncio.Future[Computed]
    rows: int
    key: BatchKey
    arrived: int = field(default_factory=time.perf_counter_ns)
    timer: asyncio.TimerHandle | None = None


@final
class Scheduler:
    """Orders requests by priority, then arrival; joins them where the model is batched.

    Args:
        first: an instance that is ready.
        another: opens a further instance.
        instances: how many there may be.
        batching: see BatchingSettings.
        fill: whether batches are filled up to few sizes.
        queue_size: requests that may wait.
        run_timeout: seconds of one run.
        statistics: where runs are counted.
    """

    def __init__(
        self,
        first: Instance,
        another: Callable[[], Awaitable[Instance]],
        *,
        instances: int,
        batching: BatchingSettings | None,
        fill: bool,
        queue_size: int,
        run_timeout: float,
        statistics: InferStatistics,
    ) -> None:
        self._all = [first]
        self._idle = [first]
        self._another = another
        self._instances = instances
        self._batching = batching
        self._fill = fill
        self._queue_size = queue_size
        self._run_timeout = run_timeout
        self._statistics = statistics
        self._heap: list[tuple[int, int, _Job]] = []
        self._numbers = itertools.count()
        self._waiting = 0
        self._running: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._delay: asyncio.TimerHandle | None = None
        self._run_seconds = 0.0
        self._run_deviation = 0.0
        self._run_requests = 1.0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self._waiting

    @property
    def running(self) -> int:
        """Runs that have begun, those of cancelled requests included."""
        return len(self._running)

    @property
    def instances(self) -> Sequence[Instance]:
        """Those that were started."""
        return self._all

    def check_room(self, deadline: float | None) -> None:
        """Refuse what `run` would refuse before it looks at the request.

        Args:
            deadline: as `time.monotonic()`; None: never.

        Raises:
            OverloadedError: the queue is full, or so long that the deadline would pass.
        """
        if not self._idle:
            self._admit(time.monotonic(), deadline)

    async def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None,
        priority: int,
        deadline: float | None,
    ) -> Computed:
        """Compute one request.

        Args:
            inputs: validated arrays.
            outputs: names of the outputs wanted; None: all.
            priority: lower goes first.
            deadline: as `time.monotonic()`.

        Raises:
            OverloadedError: the queue is full, or so long that the deadline would pass.
            DeadlineError: the deadline passed.
            OnwardError: what the run raised.
        """
        if self._closed:
            raise ModelUnavailableError("the model is being unloaded")
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        if deadline is not None and deadline <= now:
            raise DeadlineError("the request's deadline passed before it was computed")
        batched = self._batching is not None
        job = _Job(
            inputs,
            None if outputs is None else tuple(outputs),
            deadline,
            loop.create_future(),
            rows_of(inputs) if batched else 1,
            batch_key(inputs) if batched else (),
        )
        if not self._idle:
            self._admit(now, deadline)
            if deadline is not None:
                job.timer = loop.call_later(deadline - now, self._expire, job)
        heapq.heappush(self._heap, (priority, next(self._numbers), job))
        self._waiting += 1
        self._pump()
        try:
            return await job.future
        except asyncio.CancelledError:
            self._gone(job)
            raise
        finally:
            if job.timer is not None:
                job.timer.cancel()

    def close(self) -> None:
        """Refuse what waits and end the instances."""
        self._closed = True
        if self._delay is not None:
            self._delay.cancel()
        if self._starting is not None:
            self._starting.cancel()
        for _, _, job in self._heap:
            if not job.future.done():
                job.future.set_exception(ModelUnavailableError("the model is being unloaded"))
        self._heap.clear()
        self._waiting = 0
        for instance in self._all:
            instance.close()

    def _admit(self, now: float, deadline: float | None) -> None:
        if self._waiting >= self._queue_size:
            raise OverloadedError(f"{self._waiting} requests of this model wait already; try later")
        if deadline is None or not self._run_seconds:
            return
        runs = math.ceil((self._waiting + 1) / self._run_requests / len(self._all))
        # runs that are slow because the machine is busy come one after another
        estimate = runs * (self._run_seconds + 2 * self._run_deviation)
        if self._waiting and estimate > deadline - now:
            raise OverloadedError(
                f"{self._waiting} requests of this model wait already, and this one would take about "
                f"{estimate:.3g} s; its deadline is in {deadline - now:.3g} s"
            )

    def _expire(self, job: _Job) -> None:
        if not job.future.done():
            job.future.set_exception(DeadlineError("the request's deadline passed before it was computed"))
            self._gone(job)

    def _gone(self, job: _Job) -> None:
        """Take a request that nobody waits for any more out of the queue."""
        for position, entry in enumerate(self._heap):
            if entry[2] is job:
                self._heap[position] = self._heap[-1]
                self._heap.pop()
                heapq.heapify(self._heap)
                self._waiting -= 1
                return

    def _pump(self) -> None:
        while self._heap and self._idle and not self._closed:
            batch = self._take()
            if not batch:
                return
            instance = self._idle.pop()
            task = asyncio.get_running_loop().create_task(self._execute(instance, batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        if self._heap and not self._idle and len(self._all) < self._instances and self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())

    def _take(self) -> list[_Job]:
        if self._batching is None:
            self._waiting -= 1
            return [heapq.heappop(self._heap)[2]]
        taken: list[tuple[int, int, _Job]] = []
        rows = 0
        largest = self._batching.max_batch
        while self._heap:
            job = self._heap[0][2]
            if taken and (job.key != taken[0][2].key or rows + job.rows > largest):
                break
            rows += job.rows
            taken.append(heapq.heappop(self._heap))
        whole = bool(self._heap) or rows >= largest or rows in self._batching.preferred
        due = taken[0][2].arrived + int(self._batching.max_delay_ms * 1e6)
        for _, _, job in taken:
            due = min(due, job.arrived + int(self._batching.max_delay_ms * 1e6))
            if job.deadline is not None:
                left = job.deadline - time.monotonic() - self._run_seconds
                due = min(due, time.perf_counter_ns() + int(left * 1e9))
        wait = (due - time.perf_counter_ns()) / 1e9
        if not whole and wait > 0:
            for entry in taken:
                heapq.heappush(self._heap, entry)
            if self._delay is not None:
                self._delay.cancel()
            self._delay = asyncio.get_running_loop().call_later(wait, self._pump)
            return []
        self._waiting -= len(taken)
        return [job for _, _, job in taken]

    async def _start(self) -> None:
        try:
            instance = await self._another()
        except OnwardError as error:
            _LOG.error("a further instance could not be started: %s", error)
            self._instances = len(self._all)
        else:
            if self._closed:
                instance.close()
                return
            self._all.append(instance)
            self._idle.append(instance)
        finally:
            self._starting = None
        self._pump()

    async def _execute(self, instance: Instance, jobs: list[_Job]) -> None:
        try:
            await self._batch(instance, jobs)
        except Exception as error:  # noqa: BLE001 - whoever waits has to learn of it
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)
        finally:
            self._idle.append(instance)
            self._pump()

    async def _batch(self, instance: Instance, jobs: list[_Job]) -> None:
        start = time.perf_counter_ns()
        rows = [job.rows for job in jobs]
        wanted = jobs[0].outputs
        if any(job.outputs != wanted for job in jobs):
            wanted = None
        size = sum(rows)
        if self._batching is None:
            inputs = jobs[0].inputs
        else:
            if self._fill and size:
                size = max(filled_size(size, self._batching.max_batch), size)
            inputs = joined([job.inputs for job in jobs], size)
        prepared = time.perf_counter_ns()
        try:
            run = await instance.run(inputs, wanted, self._run_timeout)
            computed = time.perf_counter_ns()
            answers = [run.outputs] if self._batching is None else split(run.outputs, rows, size)
        except (InputError, ShapeError, ExecutionError):
            # one request's values must not cost the others their answers
            if len(jobs) == 1:
                raise
            for job in jobs:
                if not job.future.done():
                    try:
                        await self._batch(instance, [job])
                    except OnwardError as error:
                        if not job.future.done():
                            job.future.set_exception(error)
            return
        ended = time.perf_counter_ns()
        took = (ended - start) / 1e9
        if self._run_seconds:
            self._run_deviation += (abs(took - self._run_seconds) - self._run_deviation) * _SMOOTHING
            self._run_seconds += (took - self._run_seconds) * _SMOOTHING
        else:
            self._run_seconds = took
        self._run_requests += (len(jobs) - self._run_requests) * _SMOOTHING
        input_ns = prepared - start + max(computed - prepared - run.ns, 0)
        self._statistics.executed(sum(rows), len(jobs), input_ns, run.ns, ended - computed)
        for job, outputs in zip(jobs, answers, strict=True):
            if job.future.done():
                continue
            if job.outputs is not None:
                outputs = {name: outputs[name] for name in job.outputs}
            job.future.set_result(Computed(outputs, start - job.arrived, run.ns, len(jobs) == 1))
