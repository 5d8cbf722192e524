"""Seconds until the first training step of ResNet-20, of `import onward`, and the peak memory of its step.

python -m benchmarks.startup [--network NAME] [--batch N] [--threads N] [--repeats N]

Each figure comes from new processes. Counted are, one after the other:

- start: from the call that starts the process to its first line: Python itself
- import: Onward and what it needs (without sympy, which onnx_ir loads when dimensions are calculated with)
- network: the network with its initial weights
- step: its training step as a graph, the engine, and a random batch
- plan: shapes, lowering and memory, or reading the plan from the cache
- compile: machine code by LLVM, or reading it from the cache
- run: the first step itself, which also touches all of its memory for the first time

The goals are for what follows the imports: 3 s from a cold cache, 0.5 s from a warm one; and 0.4 s for
`import onward` alone. The cold cache is an empty directory; the warm one is what the process before left.
Python's own bytecode is cached in both. Each part is given in wall time and in processor time, which adds up
all threads: the first is what a user waits on a quiet machine, the second can be compared on a busy one.
torch's memory is measured when $ONWARD_TORCH_PYTHON names its interpreter.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NETWORK = "resnet20"
GOALS = {"cold": 3.0, "warm": 0.5, "import": 0.4}
PARTS = ("start", "import", "network", "step", "plan", "compile", "run")
_BEFORE = ("start", "import")
"""Parts that the goals leave out."""
_STEPS = 3
_ZERO = "ONWARD_BENCHMARK_ZERO"


@dataclass(frozen=True)
class First:
    """One process: seconds of each part by the wall and of processor time, a later step, bytes of memory."""

    wall: dict[str, float]
    processor: dict[str, float]
    later: float
    before: int
    peak: int

    @property
    def counted(self) -> float:
        """Wall seconds that the goals are for."""
        return sum(seconds for part, seconds in self.wall.items() if part not in _BEFORE)


def child(network: str, batch: int, threads: int) -> None:
    """Run the first steps in this process and print what they cost."""
    wall = {"start": time.monotonic() - float(os.environ[_ZERO])}
    processor = {"start": time.process_time()}
    marks = [time.perf_counter(), time.process_time()]

    def lap(part: str) -> None:
        now = [time.perf_counter(), time.process_time()]
        wall[part], processor[part] = now[0] - marks[0], now[1] - marks[1]
        marks[:] = now

    from benchmarks.suite import ours
    from benchmarks.suite.cases import find

    lap("import")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    case = find(network)
    ours.model(case)
    lap("network")
    runner = ours.training(case, batch, threads)
    lap("step")
    plan = runner.engine.plan({name: array.shape for name, array in runner.feeds.items()})
    assert plan is not None
    lap("plan")
    share = plan.seconds["compile"] / wall["plan"]
    for times in (wall, processor):
        times["compile"] = times["plan"] * share
        times["plan"] -= times["compile"]
    runner.times(1)
    lap("run")
    seconds, _ = runner.times(_STEPS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([wall, processor, statistics.median(seconds), before, peak]))


def first_step(network: str, batch: int, threads: int, cache: Path, bytecode: Path) -> First:
    """What `child` measures in a new process with this cache."""
    command = [sys.executable, "-m", "benchmarks.startup", "--child", "--network", network]
    command += ["--batch", str(batch), "--threads", str(threads)]
    environment = _environment(bytecode) | {"ONWARD_CACHE_DIR": str(cache), _ZERO: str(time.monotonic())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the step failed in its process:\n{done.stderr}")
    return First(*json.loads(done.stdout.splitlines()[-1]))


def _environment(bytecode: Path) -> dict[str, str]:
    """This process's, but with Python's bytecode kept in a folder."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(bytecode)}


def import_seconds(repeats: int, bytecode: Path) -> list[float]:
    """Seconds of `import onward` in new processes, files cached."""
    code = "import time; t = time.perf_counter(); import onward; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, env=_environment(bytecode), check=True, capture_output=True, text=True)
        for _ in range(repeats + 1)
    ]
    return [float(run.stdout) for run in runs[1:]]


def torch_memory(network: str, batch: int, threads: int) -> dict[str, dict[str, float]]:
    """Bytes before and at the peak, for each layout. Raises `PeerError` when torch does not run."""
    from benchmarks.suite import ours
    from benchmarks.suite.cases import find
    from benchmarks.suite.peers import PeerError, Torch, TorchProcess, torch_python

    python = torch_python()
    if python is None:
        raise PeerError("set ONWARD_TORCH_PYTHON to an interpreter that has torch and numpy")
    case = find(network)
    weights: dict[str, Any] = ours.weights(ours.model(case))
    found = {}
    for mode in ("eager", "channels_last"):
        process = TorchProcess(python, threads)
        try:
            before = process.call("peak memory")
            Torch.of_case(process, case, "training", batch, mode, weights, threads).times(_STEPS + 1)
            found[mode] = {"before": before, "peak": process.call("peak memory")}
        finally:
            process.close()
    return found


def report(network: str, batch: int, threads: int, repeats: int) -> None:
    """Measure and print everything."""
    from benchmarks.suite.peers import PeerError

    with tempfile.TemporaryDirectory() as folder:
        bytecode = Path(folder, "bytecode")
        seconds = import_seconds(max(5, repeats), bytecode)
        print(
            f"import onward: median {statistics.median(seconds):.3f} s, least {min(seconds):.3f} s "
            f"(goal {GOALS['import']} s)"
        )
        kept = Path(folder, "warm")
        first_step(network, batch, threads, kept, bytecode)
        for kind in ("cold", "warm"):
            caches = [Path(folder, f"cold{i}") if kind == "cold" else kept for i in range(repeats)]
            runs = [first_step(network, batch, threads, cache, bytecode) for cache in caches]
            best = _print_first(f"first step of {network}, batch {batch}, {kind} cache", kind, runs)
    _print_memory("ours", best.before, best.peak)
    try:
        for mode, found in torch_memory(network, batch, threads).items():
            _print_memory(f"torch {mode}", found["before"], found["peak"])
    except PeerError as error:
        print(f"torch's memory is missing: {error}")


def _print_first(title: str, kind: str, runs: list[First]) -> First:
    """Print the processes' least and median, and the parts of the quickest one, which is returned."""
    best = min(runs, key=lambda run: run.counted)
    median = statistics.median(run.counted for run in runs)
    whole = sum(best.wall.values())
    goal = f"; goal {GOALS[kind]} s" if NETWORK in title else ""
    print(
        f"{title}: {best.counted:.2f} s after the imports (median {median:.2f} s{goal}), {whole:.2f} s in all"
    )
    print("".join(f"{name:>11}" for name in ("", *PARTS, "later step")))
    later = f"{best.later:11.3f}"
    print(f"{'wall':>11}" + "".join(f"{best.wall[part]:11.3f}" for part in PARTS) + later)
    print(f"{'processor':>11}" + "".join(f"{best.processor[part]:11.3f}" for part in PARTS))
    return best


def _print_memory(name: str, before: float, peak: float) -> None:
    after = (peak - before) / 2**20
    print(f"peak memory, {name}: {peak / 2**20:.0f} MiB, of which {after:.0f} MiB after the imports")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default=NETWORK)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.network, options.batch, options.threads)
    else:
        report(options.network, options.batch, options.threads, options.repeats)


if __name__ == "__main__":
    main()
