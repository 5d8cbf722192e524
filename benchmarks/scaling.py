"""Step time over the batch: a straight line a + b·n, and how far the measured steps are from it.

python -m benchmarks.scaling [--only NAME] [--batches 16,32,...] [--threads N] [--cpu]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from benchmarks.suite import ours
from benchmarks.suite.cases import find


def measure(
    network: str, batches: Sequence[int], threads: int, clock: Callable[[], float], rounds: int
) -> list[list[float]]:
    """Seconds of steps at each batch size, in turns."""
    runners = [ours.training(find(network), batch, threads) for batch in batches]
    for runner in runners:
        runner.times(1)
    seconds: list[list[float]] = [[] for _ in batches]
    for _ in range(rounds):
        for found, runner in zip(seconds, runners, strict=True):
            runner.times(1)
            found += runner.times(2, clock)[0]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="resnet20", help="a network")
    parser.add_argument("--batches", default="16,32,64,128,256,512")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="one thread, processor time: for a busy machine")
    options = parser.parse_args()
    batches = [int(n) for n in options.batches.split(",")]
    threads = 1 if options.cpu else options.threads
    clock = time.thread_time if options.cpu else time.perf_counter
    seconds = measure(options.only, batches, threads, clock, options.rounds)
    least = [min(s) for s in seconds]
    # weighted so that the deviations are relative
    slope, start = np.polyfit(batches, least, 1, w=1 / np.array(least))
    print(f"{options.only}, {threads} threads: {start * 1e3:.3f} ms + {slope * 1e6:.2f} µs a sample")
    print(f"{'batch':>6} {'min ms':>9} {'median ms':>10} {'µs a sample':>12} {'off the line':>13}")
    for n, best, all_of in zip(batches, least, seconds, strict=True):
        off = best / (start + slope * n) - 1
        middle = statistics.median(all_of)
        print(f"{n:6} {best * 1e3:9.2f} {middle * 1e3:10.2f} {best / n * 1e6:12.1f} {off:13.1%}")


if __name__ == "__main__":
    main()
