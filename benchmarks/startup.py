"""Seconds until the first training step of ResNet-20, of `import onward`, and the peak memory of its step.

python -m benchmarks.startup [--batch N] [--threads N] [--repeats N]

Each figure comes from processes of their own, after the imports. The cold cache is an empty directory; the
warm one is what the process before left. Processor time adds up all threads. torch's memory is measured when
$ONWARD_TORCH_PYTHON names its interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.suite import ours
from benchmarks.suite.cases import find
from benchmarks.suite.peers import PeerError, Torch, TorchProcess, torch_python

NETWORK = "resnet20"
GOALS = {"cold": 3.0, "warm": 0.5, "import": 0.4}
_STEPS = 3


def child(batch: int, threads: int) -> None:
    """Run the first steps in this process and print what they cost."""
    started, worked = time.perf_counter(), time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    runner = ours.training(find(NETWORK), batch, threads)
    built = time.perf_counter()
    runner.engine.plan({name: array.shape for name, array in runner.feeds.items()})
    planned = time.perf_counter()
    runner.times(1)
    first, work = time.perf_counter(), time.process_time()
    seconds, _ = runner.times(_STEPS)
    found = {
        "build": built - started,
        "plan": planned - built,
        "step": first - planned,
        "processor": work - worked,
        "later": statistics.median(seconds),
        "before": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(found))


def first_step(batch: int, threads: int, cache: Path) -> dict[str, float]:
    """What `child` measures in a new process with this cache."""
    command = [sys.executable, "-m", "benchmarks.startup", "--child"]
    command += ["--batch", str(batch), "--threads", str(threads)]
    environment = os.environ | {"ONWARD_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the step failed in its process:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def import_seconds(repeats: int) -> list[float]:
    """Seconds of `import onward` in new processes, files cached."""
    code = "import time; t = time.perf_counter(); import onward; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(repeats + 1)]
    return [float(run.stdout) for run in runs[1:]]


def torch_memory(batch: int, threads: int) -> dict[str, dict[str, float]]:
    """Bytes before and at the peak, for each layout. Raises `PeerError` when torch does not run."""
    python = torch_python()
    if python is None:
        raise PeerError("set ONWARD_TORCH_PYTHON to an interpreter that has torch and numpy")
    case = find(NETWORK)
    weights: dict[str, Any] = ours.weights(ours.model(case))
    found = {}
    for mode in ("eager", "channels_last"):
        process = TorchProcess(python, threads)
        try:
            before = process.call("peak memory")
            Torch(process, case, "training", batch, mode, weights, threads).times(_STEPS + 1)
            found[mode] = {"before": before, "peak": process.call("peak memory")}
        finally:
            process.close()
    return found


def report(batch: int, threads: int, repeats: int) -> None:
    """Measure and print everything."""
    seconds = import_seconds(max(5, repeats))
    print(
        f"import onward: median {statistics.median(seconds):.3f} s, least {min(seconds):.3f} s "
        f"(goal {GOALS['import']} s)"
    )
    for kind in ("cold", "warm"):
        runs = []
        with tempfile.TemporaryDirectory() as folder:
            if kind == "warm":
                first_step(batch, threads, Path(folder))
            for i in range(repeats):
                runs.append(first_step(batch, threads, Path(folder, str(i) if kind == "cold" else "")))
        totals = [run["build"] + run["plan"] + run["step"] for run in runs]
        best = runs[totals.index(min(totals))]
        parts = f"build {best['build']:.2f} + plan and compile {best['plan']:.2f} + run {best['step']:.2f}"
        print(
            f"first step of {NETWORK}, batch {batch}, {kind} cache: median {statistics.median(totals):.2f} s,"
            f" least {min(totals):.2f} s = {parts} (goal {GOALS[kind]} s); "
            f"processor time {best['processor']:.2f} s, a later step {best['later']:.2f} s"
        )
    _print_memory("ours", best)
    try:
        for mode, found in torch_memory(batch, threads).items():
            _print_memory(f"torch {mode}", found)
    except PeerError as error:
        print(f"torch's memory is missing: {error}")


def _print_memory(name: str, found: dict[str, float]) -> None:
    peak, before = found["peak"] / 2**20, found["before"] / 2**20
    print(f"peak memory, {name}: {peak:.0f} MiB, of which {peak - before:.0f} MiB after the imports")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.batch, options.threads)
    else:
        report(options.batch, options.threads, options.repeats)


if __name__ == "__main__":
    main()
