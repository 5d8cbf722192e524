"""Counts and times of one version of a model; written on the event loop, read from anywhere."""

from __future__ import annotations

import bisect
import time
from dataclasses import dataclass, field
from typing import final

__all__ = ["LATENCY_BUCKETS", "REASONS", "BatchCounts", "InferStatistics"]

LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the latency histogram, in seconds."""

REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Why requests fail, in the words of Triton's `nv_inference_request_failure`."""


@final
@dataclass(slots=True)
class BatchCounts:
    """Executions of one batch size, and their nanoseconds."""

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@final
@dataclass(slots=True)
class InferStatistics:
    """Since the version was loaded.

    Attributes:
        success_count, success_ns: requests that were answered, from arrival to answer.
        failures: requests that were not, by reason.
        fail_ns: nanoseconds of those.
        inference_count: rows of answered requests where the model is batched, else requests.
        queue_ns, input_ns, infer_ns, output_ns: waiting, joining, computing and splitting, summed over
            the requests of a batch.
        batches: executions by batch size; a model that is not batched has size 1.
        in_process: requests that were computed in the server's own process.
        cache_hits, cache_hit_ns, cache_misses, cache_miss_ns: look-ups in the response cache, and for misses
            keeping the answer.
        latency: answered requests by LATENCY_BUCKETS; the last entry counts those above all bounds.
    """

    success_count: int = 0
    success_ns: int = 0
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    fail_ns: int = 0
    inference_count: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    batches: dict[int, BatchCounts] = field(default_factory=dict)
    in_process: int = 0
    cache_hits: int = 0
    cache_hit_ns: int = 0
    cache_misses: int = 0
    cache_miss_ns: int = 0
    last_inference_ms: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))

    @property
    def fail_count(self) -> int:
        """Requests that were not answered."""
        return sum(self.failures.values())

    @property
    def execution_count(self) -> int:
        """Runs of the model."""
        return sum(batch.count for batch in self.batches.values())

    def executed(self, size: int, requests: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count one run of a batch."""
        batch = self.batches.setdefault(size, BatchCounts())
        batch.count += 1
        batch.input_ns += input_ns
        batch.infer_ns += infer_ns
        batch.output_ns += output_ns
        self.input_ns += input_ns * requests
        self.infer_ns += infer_ns * requests
        self.output_ns += output_ns * requests

    def succeeded(self, rows: int, total_ns: int, queue_ns: int) -> None:
        """Count one answered request."""
        self.success_count += 1
        self.success_ns += total_ns
        self.inference_count += rows
        self.queue_ns += queue_ns
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.latency[bisect.bisect_left(LATENCY_BUCKETS, total_ns / 1e9)] += 1

    def failed(self, reason: str, total_ns: int) -> None:
        """Count one request that was not answered."""
        self.failures[reason] += 1
        self.fail_ns += total_ns
