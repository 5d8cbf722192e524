"""One loaded version of a model: its engines, its cross-check and its statistics."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import final

from onward.errors import OnwardError, VerificationError
from onward.graph import Array, TensorSpec
from onward_server.dataplane.crosscheck import (
    CheckOutcome,
    CheckRecorder,
    CheckStatistics,
    Comparison,
    Sampler,
    compare,
)
from onward_server.dataplane.executors import Executor
from onward_server.errors import ExecutionError
from onward_server.settings import CrossCheckSettings, Engine

__all__ = ["InferStatistics", "Inference", "ServedModel", "ShadowQueue"]

_LOG = logging.getLogger(__name__)


@final
@dataclass(frozen=True, slots=True)
class Inference:
    """Outputs of one request, the engine they come from, and what became of the cross-check."""

    outputs: Mapping[str, Array]
    engine: Engine
    outcome: CheckOutcome


@final
@dataclass(frozen=True, slots=True)
class InferStatistics:
    """Counts of requests and nanoseconds since the start, for one version of a model."""

    success_count: int = 0
    success_ns: int = 0
    fail_count: int = 0
    fail_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    last_inference_ms: int = 0


@final
class ShadowQueue:
    """Runs checks after their requests were answered, one at a time, from a bounded queue for each model."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="onward-shadow")

    def submit(self, model: ServedModel, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bool:
        """Queue a check of `outputs`; False, and counted as dropped, when the model's queue is full."""
        if not model.shadow_slots.acquire(blocking=False):
            model.recorder.count(dropped=1)
            return False

        def done(future: Future[CheckOutcome]) -> None:
            model.shadow_slots.release()
            if future.cancelled():
                model.recorder.count(dropped=1)

        try:
            future = self._pool.submit(model.check_later, inputs, outputs)
        except RuntimeError:
            model.shadow_slots.release()
            model.recorder.count(dropped=1)
            return False
        future.add_done_callback(done)
        return True

    def close(self, *, wait: bool = False) -> None:
        """Drop what waits, counted; with `wait`, finish it instead."""
        self._pool.shutdown(wait=wait, cancel_futures=not wait)


@final
class ServedModel:
    """One version of a model, ready to answer.

    Args:
        name: the model's name.
        version: its version.
        engine: the engine that answers.
        executor: the model in that engine.
        witness: the model in the other engine; None when the policy is `off`.
        check: the cross-check's settings.
        shadow: where `shadow` checks run.
    """

    def __init__(
        self,
        name: str,
        version: int,
        *,
        engine: Engine,
        executor: Executor,
        witness: Executor | None,
        check: CrossCheckSettings,
        shadow: ShadowQueue,
    ) -> None:
        self.name = name
        self.version = version
        self.engine: Engine = engine
        self.check = check
        self.recorder = CheckRecorder()
        self.shadow_slots = threading.Semaphore(check.shadow_queue)
        self._executor = executor
        self._witness = witness
        self._witness_engine: Engine = "onnxruntime" if engine == "onward" else "onward"
        self._shadow = shadow
        self._sampler = Sampler(check.rate)
        self._statistics = InferStatistics()
        self._lock = threading.Lock()

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """What a request has to bring."""
        return self._executor.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What an answer can hold."""
        return self._executor.outputs

    @property
    def check_statistics(self) -> CheckStatistics:
        """Counts of cross-checks so far."""
        return self.recorder.statistics

    @property
    def infer_statistics(self) -> InferStatistics:
        """Counts and times of requests so far."""
        with self._lock:
            return self._statistics

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None, queued_ns: int) -> Inference:
        """Compute a validated request, in the calling thread.

        Args:
            inputs: one array for each input.
            outputs: names of the outputs wanted; None: all.
            queued_ns: how long the request waited, for the statistics.

        Raises:
            InputError: an engine found an input that it cannot take.
            ExecutionError: the engine failed.
            VerificationError: the engines disagree and the policy is to fail.
        """
        start = time.perf_counter_ns()
        try:
            answer = self._infer(inputs, outputs)
        except OnwardError:
            self._count(start, queued_ns, success=False)
            raise
        except Exception as error:
            self._count(start, queued_ns, success=False)
            raise ExecutionError(f"{self.engine}: {type(error).__name__}: {error}") from error
        self._count(start, queued_ns, success=True)
        return answer

    def check_later(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> CheckOutcome:
        """Compute a request that was answered already with the witness, compare and record."""
        return self._compared(inputs, outputs)[0]

    def _infer(self, inputs: Mapping[str, Array], names: Sequence[str] | None) -> Inference:
        outputs = self._executor.run(inputs, names)
        self.recorder.count(requests=1)
        policy = self.check.policy
        if policy == "shadow":
            queued = self._shadow.submit(self, inputs, outputs)
            return Inference(outputs, self.engine, CheckOutcome.SHADOW if queued else CheckOutcome.SKIPPED)
        if policy == "off" or (policy == "sample" and not self._sampler.select()):
            self.recorder.count(skipped=1)
            return Inference(outputs, self.engine, CheckOutcome.SKIPPED)
        outcome, witnessed, mismatch = self._compared(inputs, outputs)
        if outcome is CheckOutcome.PASSED or self.check.on_mismatch == "log":
            return Inference(outputs, self.engine, outcome)
        if self.check.on_mismatch == "prefer-onnxruntime":
            if self.engine == "onnxruntime":
                return Inference(outputs, "onnxruntime", outcome)
            if witnessed is not None:
                return Inference(witnessed, "onnxruntime", outcome)
        raise VerificationError(
            f"model {self.name!r} version {self.version}: the engines disagree: {mismatch}"
        )

    def _compared(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> tuple[CheckOutcome, Mapping[str, Array] | None, str]:
        if self._witness is None:
            raise ExecutionError(f"policy {self.check.policy!r} needs a second engine, and none is loaded")
        witnessed = None
        try:
            witnessed = self._witness.run(inputs, list(outputs))
        except Exception as error:  # noqa: BLE001 - an engine may raise anything; that is a finding too
            comparison = Comparison(f"{self._witness_engine} failed: {error}")
        else:
            ours, reference = (outputs, witnessed) if self.engine == "onward" else (witnessed, outputs)
            comparison = compare(ours, reference, self.check)
        self.recorder.record(comparison)
        if not comparison.mismatch:
            return CheckOutcome.PASSED, witnessed, ""
        _LOG.error(
            "cross-check of %s version %d: %s (onward against onnxruntime)",
            self.name,
            self.version,
            comparison.mismatch,
        )
        return CheckOutcome.FAILED, witnessed, comparison.mismatch

    def _count(self, start: int, queued_ns: int, *, success: bool) -> None:
        compute_ns = time.perf_counter_ns() - start
        with self._lock:
            old = self._statistics
            new = replace(old, last_inference_ms=time.time_ns() // 1_000_000)
            total = queued_ns + compute_ns
            if success:
                new = replace(
                    new,
                    success_count=old.success_count + 1,
                    success_ns=old.success_ns + total,
                    queue_ns=old.queue_ns + queued_ns,
                    compute_ns=old.compute_ns + compute_ns,
                )
            else:
                new = replace(new, fail_count=old.fail_count + 1, fail_ns=old.fail_ns + total)
            self._statistics = new
