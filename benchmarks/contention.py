"""Two threads where another process keeps a core busy: a run's time, in units of one thread's there.

python -m benchmarks.contention [--only NAME:BATCH,...] [--busy N] [--rounds N] [--no-onnxruntime]

Ours with two threads and with one, and onnxruntime with two and with one, run in turns for a few hundredths
of a second each, beside N processes that do nothing but use a core. Goal: two threads take at most 1.2 of
one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks.suite import ours
from benchmarks.suite.cases import find

NETWORKS = "mlp:64,lenet5:32,textcnn:32,resnet20:1,mobilenet_v2:1"

BLOCK = 0.04
"""Seconds of one turn."""

REST = 0.01
"""Seconds between turns: as long as the threads of one side still spin when it is the other's turn."""

SPIN = (
    "import os, time\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**5): pass"
)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that use a core each, until the end."""
    children = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        time.sleep(0.2 if count else 0)
        yield
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()


def runners(network: str, batch: int, peer: bool) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    case = find(network)
    made: dict[str, Callable[[], object]] = {
        f"ours {threads}": ours.inference(case, batch, threads).run for threads in (2, 1)
    }
    if peer:
        from benchmarks.suite.peers import OnnxRuntime

        feeds = ours.inference(case, batch, 1).feeds
        for threads in (2, 1):
            other = OnnxRuntime(ours.deployed(case), feeds, threads)
            made[f"onnxruntime {threads}"] = lambda other=other: other.times(1)  # type: ignore[misc]
    return made


def block(run: Callable[[], object], seconds: float) -> float:
    """Seconds of a run, on average over a turn."""
    run()
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        run()
        count += 1
    return passed / max(1, count)


def measure(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a run in each turn, by name."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for run in sides.values():
        block(run, BLOCK)
    for turn in range(rounds):
        for name in names if turn % 2 else names[::-1]:
            time.sleep(REST)
            found[name].append(block(sides[name], BLOCK))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=NETWORKS, help="networks with their batch sizes")
    parser.add_argument("--busy", type=int, default=1, help="processes that use a core each")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-onnxruntime", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    print(f"{os.cpu_count()} cores, {options.busy} kept busy; a run's time, median of {options.rounds} turns")
    for text in options.only.split(","):
        network, _, batch = text.partition(":")
        sides = runners(network, int(batch or 1), not options.no_onnxruntime)
        with busy(options.busy):
            found = measure(sides, options.rounds)
        cells = []
        for who in dict.fromkeys(name.split()[0] for name in found):
            two, one = found[f"{who} 2"], found[f"{who} 1"]
            ratio = statistics.median(a / b for a, b in zip(two, one, strict=True))
            times = [f"{statistics.median(t) * 1e3:8.3f}" for t in (two, one)]
            cells.append(f"{who}: {times[0]} ms with two, {times[1]} with one, {ratio:5.2f}")
        print(f"{network:>14} {batch:>3}  " + "; ".join(cells), flush=True)


if __name__ == "__main__":
    main()
