"""How well training divides among MPI ranks: measured here with two, predicted for more.

    python -m benchmarks.scaling_mpi lenet5 --batch 512

measures, in turns, one process with two threads and two ranks of one thread each at the same batch, and the
latency and bandwidth of an all-reduce between the ranks. The prediction for R ranks replays the buckets of a
training step: gradients become ready evenly over the backward pass, two thirds of a step; exchanges come in
turn; what is not done when the backward pass ends is waited for. An all-reduce of n bytes takes
2 (R - 1) / R n / bandwidth + 2 ceil(log2 R) latency (R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of
collective communication operations in MPICH", IJHPCA 2005). The batch of each rank stays the same.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onward.nn import zoo
from onward.parallel import launched, world
from onward.train import Callback, Trainer
from onward.train.run import Run

__all__ = ["Network", "efficiency", "main"]

NETWORKS = {"10 Gbit/s Ethernet": (20e-6, 1.1e9), "100 Gbit/s InfiniBand": (2e-6, 11e9)}
"""Seconds of latency and bytes a second, as is typical."""
RANKS = (2, 4, 8, 16, 64, 256, 1024)
_BACKWARD = 2 / 3
_SHORT = 64.0


@dataclass(frozen=True)
class Network:
    """What an all-reduce costs.

    Attributes:
        latency: seconds of a message without contents.
        bandwidth: bytes a second.
    """

    latency: float
    bandwidth: float

    def all_reduce(self, nbytes: float, ranks: int) -> float:
        """Seconds that so many ranks need to sum so many bytes."""
        if ranks == 1:
            return 0.0
        return (
            2 * (ranks - 1) / ranks * nbytes / self.bandwidth + 2 * math.ceil(math.log2(ranks)) * self.latency
        )


def efficiency(step: float, buckets: Sequence[float], network: Network, ranks: int) -> float:
    """The share of its time in which a rank computes.

    Args:
        step: seconds that a rank computes for a step.
        buckets: bytes, in the order in which they become ready.
        network: between the ranks.
        ranks: how many.
    """
    total = sum(buckets) or 1.0
    begin = step * (1 - _BACKWARD)
    free = begin
    ready = 0.0
    for nbytes in buckets:
        ready += nbytes
        free = max(free, begin + step * _BACKWARD * ready / total) + network.all_reduce(nbytes, ranks)
    return step / (max(step, free) + network.all_reduce(_SHORT, ranks))


class _Clock(Callback):
    """When steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, run: Run) -> None:
        self.ends.append(time.perf_counter())


def _data(trainer: Trainer, count: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    (spec,) = trainer.inputs
    shape = (count, *(d for d in (spec.shape or ())[1:] if isinstance(d, int)))
    x = rng.integers(0, 2, shape) if "int" in str(spec.dtype).lower() else rng.standard_normal(shape)
    return x.astype(np.int64 if x.dtype.kind == "i" else np.float32), rng.integers(0, 2, count)


def _work(name: str, options: dict[str, Any], batch: int, steps: int, threads: int) -> None:
    """One rank, or the one process: prints seconds a step, and what an all-reduce costs."""
    ranks = None if launched() is None else world()
    trainer = Trainer(
        zoo.build(name, **options), "cross_entropy", "sgd", threads=threads, parallel="mpi" if ranks else None
    )
    x, y = _data(trainer, batch * steps)
    trainer.fit((x[: 2 * batch], y[: 2 * batch]), batch_size=batch, progress=False)
    before = [(t.waiting, t.communicating) for t in trainer.times]
    clock = _Clock()
    trainer.fit((x, y), batch_size=batch, progress=False, callbacks=[clock])
    found: dict[str, Any] = {"step": statistics.median(np.diff(clock.ends))}
    if ranks is not None:
        mine = trainer.times[ranks.rank]
        waited, under_way = mine.waiting - before[ranks.rank][0], mine.communicating - before[ranks.rank][1]
        found |= {"waiting": waited / steps, "communicating": under_way / steps}
        for key, count, turns in (("small", 1, 300), ("large", 1 << 20, 20)):
            block = np.zeros(count, np.float32)
            samples = []
            for _ in range(turns):
                ranks.barrier()
                started = time.perf_counter()
                ranks.all_reduce_wait(ranks.all_reduce_start(block))
                samples.append(time.perf_counter() - started)
            found[key] = statistics.median(samples)
    found["bytes"] = [a.nbytes for name, a in trainer.weights().items() if name in trainer.step.parameters]
    if ranks is None or ranks.rank == 0:
        print(json.dumps(found), flush=True)


def _buckets(sizes: Sequence[int], limit: int = 4 << 20) -> list[float]:
    """Sizes of the parameters, the last layers' first, as `Collective` puts them together."""
    buckets, held = [], 0.0
    for size in reversed(sizes):
        held += size
        if held >= limit:
            buckets.append(held)
            held = 0.0
    return [*buckets, held] if held else buckets


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("network")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={}, help="of the network, as JSON")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        _work(args.network, args.options, args.batch, args.steps, args.work)
        return 0
    mpirun = shutil.which("mpirun") or str(Path(sys.executable).with_name("mpirun"))
    base = [sys.executable, "-m", "benchmarks.scaling_mpi", args.network, "--batch", str(args.batch)]
    base += ["--steps", str(args.steps), "--options", json.dumps(args.options), "--work"]
    launch = [mpirun, "--oversubscribe", "--bind-to", "none", "-n", "2"]
    one: list[dict[str, Any]] = []
    two: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        for results, command in ((one, [*base, "2"]), (two, [*launch, *base, "1"])):
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
            results.append(json.loads(done.stdout.strip().splitlines()[-1]))
    alone = statistics.median(each["step"] for each in one)
    best = min(two, key=lambda each: each["step"])
    joined = statistics.median(each["step"] for each in two)
    pairs = [a["step"] / b["step"] for a, b in zip(one, two, strict=True)]
    print(f"{args.network}, batch {args.batch}: one process, two threads {alone * 1e3:.2f} ms a step")
    print(
        f"two ranks, one thread each {joined * 1e3:.2f} ms; efficiency {statistics.median(pairs):.3f} "
        f"({min(pairs):.3f} … {max(pairs):.3f}); of a step's {best['step'] * 1e3:.2f} ms, "
        f"{best['waiting'] * 1e3:.2f} were waited, {best['communicating'] * 1e3:.2f} were exchanges"
    )
    here = Network(best["small"] / 2, (1 << 22) / best["large"])
    print(f"here: {here.latency * 1e6:.1f} us, {here.bandwidth / 1e9:.2f} GB/s")
    compute = max(best["step"] - best["waiting"], 1e-9)
    buckets = _buckets(best["bytes"])
    measured = compute / best["step"]
    print(
        f"2 ranks here: share of computing measured {measured:.3f}, predicted "
        f"{efficiency(compute, buckets, here, 2):.3f}"
    )
    print("\n| network | " + " | ".join(map(str, RANKS)) + " |\n|---" * 1 + "|---" * len(RANKS) + "|")
    for label, (latency, bandwidth) in NETWORKS.items():
        network = Network(latency, bandwidth)
        cells = " | ".join(f"{efficiency(compute, buckets, network, ranks):.3f}" for ranks in RANKS)
        print(f"| {label} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
