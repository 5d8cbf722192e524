"""One loaded version of a model: its instances, its cross-check and its statistics."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from onward.errors import InputError, OnwardError, ShapeError, VerificationError
from onward.graph import Array, TensorSpec
from onward_server.dataplane.budget import Budget, Meter, metered
from onward_server.dataplane.crosscheck import (
    CheckOutcome,
    CheckRecorder,
    CheckStatistics,
    Comparison,
    Sampler,
    compare,
)
from onward_server.dataplane.hosts import Instance
from onward_server.dataplane.inline import Inline, Signature, signature
from onward_server.dataplane.scheduler import Scheduler
from onward_server.dataplane.statistics import InferStatistics
from onward_server.dataplane.witness import LIMITS, Finding, Pair
from onward_server.errors import (
    DeadlineError,
    ExecutionError,
    ModelUnavailableError,
    OverloadedError,
    RunTimeoutError,
    WorkerLostError,
)
from onward_server.model_settings import CrossCheckSettings, Engine, ModelSettings

__all__ = ["Inference", "ServedModel"]

_LOG = logging.getLogger(__name__)
_LARGE = 1 << 20
_NUMBERS = itertools.count(1)
_KNOWN = 1024
_LOCATE_SECONDS = 600.0
"""After a mismatch was computed again node by node, further ones of that version are not for so long."""
_GATHER_SECONDS = 0.25
_GATHER_CHECKS = 16
_GATHER_BYTES = 4 << 20
_GATHER_TENSORS = 512


@final
@dataclass(frozen=True, slots=True)
class Inference:
    """Outputs of one request, their engine, what became of the cross-check and why, and its times."""

    outputs: Mapping[str, Array]
    engine: Engine
    outcome: CheckOutcome
    reason: str = ""
    queue_ns: int = 0
    infer_ns: int = 0


@final
class ServedModel:
    """One version of a model, ready to answer.

    Args:
        name: the model's name.
        version: its version.
        settings: how it is served, the server's settings filled in.
        engine: the engine that answers.
        reason: why that is not the engine that was asked for; else empty.
        check: the cross-check's settings.
        budget: what checks may take that no answer waits for.
        first: the model in that engine.
        scheduler: the queue before it.
        statistics: what the scheduler counts in.
        witness: the model in the other engine; None when the policy is `off`.
        locate: says where both engines part on the inputs of a request, within some seconds.
        inline: runs in this process; None: never.
        labels: class names for the classification extension.
    """

    def __init__(
        self,
        name: str,
        version: int,
        *,
        settings: ModelSettings,
        engine: Engine,
        reason: str,
        check: CrossCheckSettings,
        budget: Budget,
        first: Instance,
        scheduler: Scheduler,
        statistics: InferStatistics,
        witness: Instance | None,
        locate: Callable[[Mapping[str, Array], CrossCheckSettings, float], Awaitable[str]],
        inline: Inline | None,
        labels: Sequence[str],
    ) -> None:
        self.number = next(_NUMBERS)
        self.name = name
        self.version = version
        self.settings = settings
        self.engine: Engine = engine
        self.reason = reason
        self.check = check
        self.labels = labels
        self.inputs: Sequence[TensorSpec] = first.inputs
        self.outputs: Sequence[TensorSpec] = first.outputs
        self.texts = first.texts
        self.scheduler = scheduler
        self.infer_statistics = statistics
        self.recorder = CheckRecorder()
        self._witness = witness
        self._locate = locate
        self._locate_after = 0.0
        self._witness_engine: Engine = "onnxruntime" if engine == "onward" else "onward"
        self._inline = inline
        self._sampler = Sampler(check.rate)
        self._account = budget.account(check.share) if check.policy == "sample" else None
        self._owed = False
        self._later: list[Pair] = []
        self._gathering: asyncio.TimerHandle | None = None
        self._in_check = 0
        self._checks: set[asyncio.Task[None]] = set()
        self._active = 0
        self._known: set[tuple[object, ...]] = set()
        self._answers_first = check.answers_first

    @property
    def title(self) -> str:
        """What texts call it."""
        return f"model {self.name!r} version {self.version}"

    @property
    def check_statistics(self) -> CheckStatistics:
        """Counts of cross-checks so far."""
        return self.recorder.statistics

    @property
    def pending(self) -> int:
        """Requests in it, and runs that outlive theirs."""
        return max(self._active, self.scheduler.running)

    @property
    def restarts(self) -> int:
        """How often a worker of it was replaced."""
        return sum(instance.restarts for instance in self.scheduler.instances)

    async def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Inference:
        """Compute a validated request.

        Args:
            inputs: one array for each input.
            outputs: names of the outputs wanted; None: all.
            priority: 1 goes first; 0: the model's default.
            deadline: as `time.monotonic()`; None: never.

        Raises:
            InputError: an engine found an input that it cannot take.
            OverloadedError: too much waits.
            DeadlineError: the deadline passed.
            RunTimeoutError, MemoryLimitError, WorkerLostError: the run was ended.
            ExecutionError: the engine failed.
            VerificationError: the engines disagree and the policy is to fail.
        """
        start = time.perf_counter_ns()
        self._active += 1
        try:
            found, queue_ns, infer_ns, rows = await self._computed(inputs, outputs, priority, deadline)
            answer = await self._checked(inputs, found)
        except asyncio.CancelledError:
            self.infer_statistics.failed("CANCELED", time.perf_counter_ns() - start)
            raise
        except OnwardError as error:
            self.infer_statistics.failed(_reason(error), time.perf_counter_ns() - start)
            raise
        finally:
            self._active -= 1
        self.infer_statistics.succeeded(rows, time.perf_counter_ns() - start, queue_ns)
        return replace(answer, queue_ns=queue_ns, infer_ns=infer_ns)

    def check_room(self, deadline: float | None) -> None:
        """Refuse a request that `infer` would refuse, whatever its inputs.

        Raises:
            OverloadedError: too much waits.
        """
        if self._inline is not None and self._inline.is_used:
            return
        try:
            self.scheduler.check_room(deadline)
        except OverloadedError as error:
            self.infer_statistics.failed(_reason(error), 0)
            raise

    def recalled(self, outputs: Mapping[str, Array], engine: Engine, took: int) -> Inference:
        """Count a request whose answer was kept from an earlier one; `took` ns."""
        rows = int(next(iter(outputs.values())).shape[0]) if self.settings.batching is not None else 1
        self.infer_statistics.succeeded(rows, took, 0)
        self.recorder.count(requests=1, skipped=1)
        return Inference(outputs, engine, CheckOutcome.SKIPPED)

    def infer_now(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None, deadline: float | None
    ) -> Inference | None:
        """Compute a validated request here and now, where that takes microseconds; None: `infer` it.

        Raises:
            OnwardError: see `infer`.
        """
        inline = self._inline_for(inputs)
        if inline is None or not (self._answers_first or self.check.policy == "off"):
            return None
        shapes = signature(inputs)
        if not inline.has(shapes):
            return None
        start = time.perf_counter_ns()
        try:
            found, _, rows = self._here(inline, shapes, inputs, outputs, deadline)
        except OnwardError as error:
            self.infer_statistics.failed(_reason(error), time.perf_counter_ns() - start)
            raise
        answer = self._answered_first(inputs, found)
        self.infer_statistics.succeeded(rows, time.perf_counter_ns() - start, 0)
        return answer

    def is_known(self, inputs: Mapping[str, Array]) -> bool:
        """Whether inputs of these names, types and shapes were checked before."""
        return _kinds(inputs) in self._known

    def know(self, inputs: Mapping[str, Array]) -> None:
        """Inputs of these names, types and shapes fit the model."""
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known.add(_kinds(inputs))

    async def settle(self) -> None:
        """Wait for the checks that are under way."""
        self._check_gathered()
        while self._checks:
            await asyncio.wait(set(self._checks))

    async def retire(self, timeout: float) -> None:
        """Finish what it has, at most `timeout` s, and close."""
        deadline = time.monotonic() + timeout
        self._check_gathered()
        while (self.pending or self._checks) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self.close()

    def close(self) -> None:
        """Give up what waits, and end the processes."""
        if self._inline is not None:
            self._inline.close()
        self.scheduler.close()
        if self._gathering is not None:
            self._gathering.cancel()
        self.recorder.count(dropped=len(self._later))
        self._later.clear()
        for task in self._checks:
            task.cancel()
        if self._witness is not None:
            self._witness.close()

    async def _computed(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None,
        priority: int,
        deadline: float | None,
    ) -> tuple[dict[str, Array], int, int, int]:
        batched = self.settings.batching is not None
        rows = int(next(iter(inputs.values())).shape[0]) if batched else 1
        if (inline := self._inline_for(inputs)) is not None:
            shapes = signature(inputs)
            if inline.has(shapes):
                found, took, rows = self._here(inline, shapes, inputs, outputs, deadline)
                return found, 0, took, rows
        return await self._scheduled(inputs, outputs, priority, deadline, rows)

    def _inline_for(self, inputs: Mapping[str, Array]) -> Inline | None:
        """What runs requests in this process; None for texts, whose time does not follow from their shape."""
        if self.texts is not None and inputs[self.texts].dtype == object:
            return None
        return self._inline

    def _here(
        self,
        inline: Inline,
        shapes: Signature,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None,
        deadline: float | None,
    ) -> tuple[dict[str, Array], int, int]:
        rows = 1 if self.settings.batching is None else shapes[0][1][0]
        if deadline is not None and deadline <= time.monotonic():
            raise DeadlineError("the request's deadline passed before it was computed")
        try:
            found, took = inline.run(shapes, inputs, outputs)
        except OnwardError:
            raise
        except Exception as error:
            raise ExecutionError(f"{self.engine}: {type(error).__name__}: {error}") from error
        self.infer_statistics.executed(rows, 1, 0, took, 0)
        self.infer_statistics.in_process += 1
        return found, took, rows

    async def _scheduled(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None,
        priority: int,
        deadline: float | None,
        rows: int,
    ) -> tuple[dict[str, Array], int, int, int]:
        computed = await self.scheduler.run(
            inputs, outputs, priority or self.settings.default_priority, deadline
        )
        if computed.alone and (inline := self._inline_for(inputs)) is not None:
            inline.observe(signature(inputs), inputs, computed.infer_ns)
        return computed.outputs, computed.queue_ns, computed.infer_ns, rows

    async def _checked(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Inference:
        if self._answers_first or not self._selects():
            return self._answered_first(inputs, outputs)
        self.recorder.count(requests=1)
        outcome, witnessed, reason = await self._compared(inputs, outputs)
        if outcome is not CheckOutcome.FAILED or self.check.on_mismatch == "log":
            return Inference(outputs, self.engine, outcome, reason)
        if self.check.on_mismatch == "prefer-onnxruntime":
            if self.engine == "onnxruntime":
                return Inference(outputs, "onnxruntime", outcome)
            if witnessed is not None:
                return Inference(witnessed, "onnxruntime", outcome)
        raise VerificationError(f"{self.title}: the engines disagree: {reason}")

    def _selects(self) -> bool:
        """Whether a request is checked that waits for it."""
        policy = self.check.policy
        return policy != "off" and (policy != "sample" or self._sampler.select())

    def _selects_later(self) -> bool:
        """Whether a request is checked that does not."""
        if self._account is None:
            return True
        if not self._owed and not self._sampler.select():
            return False
        # what the budget does not allow now is made good with a later request
        self._owed = not self._account.allows()
        return not self._owed

    def _answered_first(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Inference:
        """The answer, and a check of it afterwards where it is selected."""
        if not self._answers_first or not self._selects_later():
            self.recorder.count(requests=1, skipped=1)
            return Inference(outputs, self.engine, CheckOutcome.SKIPPED)
        if len(self._later) + self._in_check >= self.check.shadow_queue:
            self.recorder.count(requests=1, dropped=1)
            return Inference(outputs, self.engine, CheckOutcome.SKIPPED)
        self.recorder.count(requests=1)
        self._later.append(Pair(inputs, outputs))
        if len(self._later) >= _GATHER_CHECKS:
            self._check_gathered()
        elif self._gathering is None:
            loop = asyncio.get_running_loop()
            self._gathering = loop.call_later(_GATHER_SECONDS, self._check_gathered)
        return Inference(outputs, self.engine, CheckOutcome.SHADOW)

    def _check_gathered(self) -> None:
        """Give the witness what was gathered: once for several requests is cheaper than once for each."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if not self._later:
            return
        pairs, self._later = self._later, []
        self._in_check += len(pairs)
        task = asyncio.get_running_loop().create_task(self._check_metered(pairs))
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def _check_metered(self, pairs: list[Pair]) -> None:
        spent, seconds = Meter(), Meter()
        try:
            await metered(self._check_all(pairs, seconds), spent)
        finally:
            if self._account is not None:
                self._account.spent(len(pairs), spent.seconds, seconds.seconds)

    async def _check_all(self, pairs: list[Pair], witness: Meter) -> None:
        left = len(pairs)
        try:
            for batch in _parts(pairs):
                await self._check_later(batch, witness)
                left -= len(batch)
                self._in_check -= len(batch)
        finally:
            self._in_check -= left
            if left:
                self.recorder.count(dropped=left)

    async def _check_later(self, pairs: list[Pair], witness: Meter) -> None:
        assert self._witness is not None
        timeout = (self.settings.run_timeout or 60.0) * len(pairs)
        findings: list[Finding]
        try:
            checks = await self._witness.check(
                pairs, self.check, timeout, is_reference=self.engine == "onward"
            )
        except OnwardError as error:
            if len(pairs) > 1:
                # the witness ended: over which of them is found one by one
                for pair in pairs:
                    await self._check_later([pair], witness)
                return
            findings = [error]
        else:
            findings = list(checks.findings)
            witness.seconds += checks.seconds
        for pair, finding in zip(pairs, findings, strict=True):
            self._found(finding, pair.inputs)

    async def _compared(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> tuple[CheckOutcome, Mapping[str, Array] | None, str]:
        if self._witness is None:
            raise ExecutionError(f"policy {self.check.policy!r} needs a second engine, and none is loaded")
        witnessed: Mapping[str, Array] | None = None
        finding: Finding
        try:
            run = await self._witness.run(inputs, list(outputs), self.settings.run_timeout or 60.0)
        except OnwardError as error:
            finding = error
        else:
            witnessed = run.outputs
            ours, reference = (outputs, witnessed) if self.engine == "onward" else (witnessed, outputs)
            if sum(array.nbytes for array in outputs.values()) > _LARGE:
                finding = await asyncio.to_thread(compare, ours, reference, self.check)
            else:
                finding = compare(ours, reference, self.check)
        outcome, text = self._found(finding, inputs)
        return outcome, witnessed, text

    def _found(self, finding: Finding, inputs: Mapping[str, Array]) -> tuple[CheckOutcome, str]:
        """Count what a check found; the outcome, and the mismatch or why there was no comparison."""
        if isinstance(finding, LIMITS):
            reason = f"{self._witness_engine}: {finding}"
            self.recorder.leave_unchecked(reason)
            _LOG.warning("%s: a request was not cross-checked: %s", self.title, reason)
            return CheckOutcome.SKIPPED, reason
        if isinstance(finding, OnwardError):
            finding = Comparison(f"{self._witness_engine} failed: {finding}")
        self.recorder.record(finding)
        if not finding.mismatch:
            return CheckOutcome.PASSED, ""
        _LOG.error(
            "cross-check of %s version %d: %s (onward against onnxruntime)",
            self.name,
            self.version,
            finding.mismatch,
        )
        now = time.monotonic()
        if now >= self._locate_after:
            self._locate_after = now + _LOCATE_SECONDS
            task = asyncio.get_running_loop().create_task(self._located(inputs))
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)
        return CheckOutcome.FAILED, finding.mismatch

    async def _located(self, inputs: Mapping[str, Array]) -> None:
        """Report the first node that differs."""
        timeout = 10 * (self.settings.run_timeout or 60.0)
        try:
            difference = await self._locate(inputs, self.check, timeout)
        except OnwardError as error:
            _LOG.warning("%s: where the engines part was not found: %s", self.title, error)
            return
        self.recorder.locate(difference)
        _LOG.error(
            "cross-check of %s version %d, node by node: %s",
            self.name,
            self.version,
            difference or "the engines agree",
        )


def _parts(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pairs that go to the witness together."""
    parts: list[list[Pair]] = []
    size = tensors = 0
    for pair in pairs:
        arrays = [*pair.inputs.values(), *pair.outputs.values()]
        size += sum(array.nbytes for array in arrays)
        tensors += len(arrays)
        if parts and size <= _GATHER_BYTES and tensors <= _GATHER_TENSORS:
            parts[-1].append(pair)
        else:
            parts.append([pair])
            size, tensors = sum(array.nbytes for array in arrays), len(arrays)
    return parts


def _kinds(inputs: Mapping[str, Array]) -> tuple[object, ...]:
    return tuple([(name, array.dtype, array.shape) for name, array in inputs.items()])


def _reason(error: OnwardError) -> str:
    if isinstance(error, (OverloadedError, DeadlineError, ModelUnavailableError)):
        return "REJECTED"
    if isinstance(error, (ExecutionError, WorkerLostError, RunTimeoutError, VerificationError)):
        return "BACKEND"
    if isinstance(error, (InputError, ShapeError)):
        return "REJECTED"
    return "OTHER"
