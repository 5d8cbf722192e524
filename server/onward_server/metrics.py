"""Prometheus metrics: Triton's names beside ours, read from the data plane when they are asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from onward_server.dataplane import DataPlane
from onward_server.dataplane.statistics import LATENCY_BUCKETS
from onward_server.training import TrainingService
from onward_server.training.statistics import DURATION_BUCKETS

__all__ = ["exposition"]

_LABELS = ("model", "version")


def exposition(plane: DataPlane, training: TrainingService | None = None) -> bytes:
    """All metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    # process_*: memory, processor time and open files of the process that answers, where there is /proc
    ProcessCollector(registry=registry)
    registry.register(_Collector(plane))
    if training is not None:
        registry.register(_Jobs(training))
    text: bytes = generate_latest(registry)
    # Triton's counters are named without the suffix that the library adds
    lines = [
        line.replace("_total", "", 1) if line.startswith(_TRITON) else line
        for line in text.decode().splitlines()
    ]
    return ("\n".join(lines) + "\n").encode()


_TRITON = tuple(
    start + name for start in ("", "# HELP ", "# TYPE ") for name in ("nv_inference_", "nv_cache_")
)


@final
class _Collector:
    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        plane = self._plane
        models = plane.select()
        counts = [((m.name, str(m.version)), m, m.infer_statistics) for m in models]

        def counter(name: str, text: str, values: list[tuple[tuple[str, ...], float]], *more: str) -> Any:
            family = CounterMetricFamily(name, text, labels=(*_LABELS, *more))
            for labels, value in values:
                family.add_metric(labels, value)
            return family

        def gauge(name: str, text: str, values: list[tuple[tuple[str, ...], float]], *more: str) -> Any:
            family = GaugeMetricFamily(name, text, labels=(*_LABELS, *more))
            for labels, value in values:
                family.add_metric(labels, value)
            return family

        yield counter(
            "nv_inference_request_success", "Requests answered", [(k, s.success_count) for k, _, s in counts]
        )
        yield counter(
            "nv_inference_request_failure",
            "Requests not answered, by reason",
            [((*k, reason), value) for k, _, s in counts for reason, value in s.failures.items()],
            "reason",
        )
        yield counter(
            "nv_inference_count",
            "Inferences; a batch of n counts n",
            [(k, s.inference_count) for k, _, s in counts],
        )
        yield counter(
            "nv_inference_exec_count", "Runs of the model", [(k, s.execution_count) for k, _, s in counts]
        )
        for name, text, values in (
            ("request", "from arrival to answer", [(k, s.success_ns) for k, _, s in counts]),
            ("queue", "waiting", [(k, s.queue_ns) for k, _, s in counts]),
            ("compute_input", "joining and handing over inputs", [(k, s.input_ns) for k, _, s in counts]),
            ("compute_infer", "computing", [(k, s.infer_ns) for k, _, s in counts]),
            ("compute_output", "splitting outputs", [(k, s.output_ns) for k, _, s in counts]),
        ):
            yield counter(
                f"nv_inference_{name}_duration_us",
                f"Microseconds {text}, summed over requests",
                [(k, value // 1000) for k, value in values],
            )
        if plane.cache.size:
            yield counter(
                "nv_cache_num_hits_per_model",
                "Answers taken from the cache",
                [(k, s.cache_hits) for k, _, s in counts],
            )
            yield counter(
                "nv_cache_num_misses_per_model",
                "Answers not found in the cache",
                [(k, s.cache_misses) for k, _, s in counts],
            )
            used = float(plane.cache.used)
            yield GaugeMetricFamily("onward_cache_bytes", "Bytes of cached answers", value=used)
        yield gauge(
            "nv_inference_pending_request_count",
            "Requests that wait",
            [(k, m.scheduler.waiting) for k, m, _ in counts],
        )
        family = HistogramMetricFamily(
            "onward_request_duration_seconds", "Answered requests, from arrival to answer", labels=_LABELS
        )
        for labels, _, statistics in counts:
            total = 0
            buckets = []
            for bound, count in zip((*LATENCY_BUCKETS, None), statistics.latency, strict=True):
                total += count
                buckets.append(("+Inf" if bound is None else str(bound), total))
            family.add_metric(labels, buckets, statistics.success_ns / 1e9)
        yield family
        yield counter(
            "onward_batch_executions",
            "Runs by batch size",
            [((*k, str(size)), batch.count) for k, _, s in counts for size, batch in s.batches.items()],
            "batch_size",
        )
        yield counter(
            "onward_in_process_requests",
            "Requests computed without a worker",
            [(k, s.in_process) for k, _, s in counts],
        )
        yield counter("onward_worker_restarts", "Workers replaced", [(k, m.restarts) for k, m, _ in counts])
        yield gauge("onward_instances", "Workers", [(k, len(m.scheduler.instances)) for k, m, _ in counts])
        yield gauge(
            "onward_model_info",
            "The engine that answers",
            [((*k, m.engine), 1) for k, m, _ in counts],
            "engine",
        )
        yield counter(
            "onward_cross_checks",
            "Cross-checks by outcome",
            [
                ((*k, outcome), getattr(m.check_statistics, outcome))
                for k, m, _ in counts
                for outcome in ("passed", "failed", "skipped", "dropped")
            ],
            "outcome",
        )
        yield counter(
            "onward_cross_checks_unchecked",
            "Requests that the witness could not compute within its limits",
            [(k, m.check_statistics.unchecked) for k, m, _ in counts],
        )
        yield gauge(
            "onward_cross_check_max_absolute_error",
            "Largest difference between two engines",
            [(k, m.check_statistics.max_absolute_error) for k, m, _ in counts],
        )
        for name, text, value in (
            ("onward_requests_in_server", "Requests in the server", float(plane.pending)),
            ("onward_request_bytes_in_server", "Bytes of them", float(plane.pending_bytes)),
            ("onward_models_unavailable", "Versions that could not be loaded", float(len(plane.problems))),
            ("onward_uptime_seconds", "Since the start", time.time() - plane.started),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        yield CounterMetricFamily(
            "onward_refusals", "Requests refused before they were read", value=float(plane.refusals)
        )


@final
class _Jobs:
    def __init__(self, training: TrainingService) -> None:
        self._training = training

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        training, counts = self._training, self._training.statistics
        jobs = GaugeMetricFamily("onward_training_jobs", "Jobs that have not ended", labels=("state",))
        jobs.add_metric(("queued",), training.queued)
        jobs.add_metric(("running",), training.running)
        yield jobs
        ended = CounterMetricFamily(
            "onward_training_jobs_ended", "Jobs, by how they ended", labels=("state",)
        )
        for state, count in counts.ended.items():
            ended.add_metric((state,), count)
        yield ended
        durations = HistogramMetricFamily("onward_training_run_duration_seconds", "Runs of jobs")
        total = 0
        buckets = []
        for bound, count in zip((*DURATION_BUCKETS, None), counts.durations, strict=True):
            total += count
            buckets.append(("+Inf" if bound is None else str(bound), total))
        durations.add_metric((), buckets, counts.seconds)
        yield durations
        yield CounterMetricFamily(
            "onward_training_rows", "Rows that runs have learned from", value=counts.rows
        )
        yield GaugeMetricFamily(
            "onward_training_rows_per_second", "Of the jobs that run", value=counts.rows_per_second
        )
