"""This checkout against another one, network by network, in turns on the same machine.

python -m benchmarks.checkouts OTHER [--only NAME] [--rounds N] [--seconds S] [--threads N]

OTHER is a folder with another checkout of Onward, such as `git worktree add` makes of an older commit. Each
side runs in a process of its own, with its own code and its own cache, and both run the steps of
`benchmarks.run`: training at each batch size, inference at 1 and 32. A round times one side, then the other,
and the next round begins with the one that came last. Printed are the median over the rounds of this ÷ other,
with its quartiles, and the ratio of the fastest steps of all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.suite.cases import CASES

_WORKER = """
import json, sys, time
import numpy as np
from benchmarks.suite import ours
from benchmarks.suite.cases import CASES
cases = {c.network: c for c in CASES}
made = None
for line in sys.stdin:
    what, *rest = json.loads(line)
    if what == "make":
        kind, name, batch, threads = rest
        made = (ours.training if kind == "training" else ours.inference)(cases[name], batch, threads)
        started = time.perf_counter()
        made.run()
        answer = time.perf_counter() - started
        made.times(3)
    else:
        end, answer = time.perf_counter() + rest[0], []
        while time.perf_counter() < end or len(answer) < 3:
            answer += made.times(1)[0]
    print(json.dumps(answer), flush=True)
"""


class _Side:
    def __init__(self, folder: Path, cache: str) -> None:
        parts = [folder / name for name in (".", "runtime", "protos", "server", "client")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, parts)),
            "ONWARD_CACHE_DIR": cache,
            "ORT_DISABLE_TELEMETRY": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *request: Any) -> Any:
        """The worker's answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended: see its message above")
        return json.loads(line)

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _compare(sides: tuple[_Side, _Side], rounds: int, seconds: float) -> tuple[list[float], float]:
    """Ratios of medians by round, and the ratio of the fastest steps."""
    ratios: list[float] = []
    fastest = [float("inf"), float("inf")]
    for turn in range(rounds):
        medians = [0.0, 0.0]
        for i in (0, 1) if turn % 2 == 0 else (1, 0):
            taken = sides[i].ask("time", seconds)
            medians[i] = statistics.median(taken)
            fastest[i] = min(fastest[i], *taken)
        ratios.append(medians[0] / medians[1])
    return ratios, fastest[0] / fastest[1]


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        sides = (_Side(Path(__file__).parents[1], one), _Side(options.other.resolve(), two))
        try:
            for case in CASES:
                if options.only and case.network not in options.only.split(","):
                    continue
                work = [("training", n) for n in case.batches]
                work += [("inference", n) for n in case.inference_batches]
                for kind, batch in work:
                    first = [s.ask("make", kind, case.network, batch, options.threads) for s in sides]
                    ratios, fastest = _compare(sides, options.rounds, options.seconds)
                    low, middle, high = statistics.quantiles(ratios, n=4)
                    print(
                        f"{case.network:14} {kind:9} {batch:4}  "
                        f"this/other {middle:.3f} ({low:.3f}-{high:.3f})  fastest {fastest:.3f}  "
                        f"first step {first[0]:.2f} / {first[1]:.2f} s",
                        flush=True,
                    )
        finally:
            for side in sides:
                side.close()


if __name__ == "__main__":
    main()
