"""Latency of a known size of batch while batches of new sizes arrive at the same session.

python -m benchmarks.new_sizes [--only NAME] [--known N] [--sizes N] [--rounds N]

One caller runs the known size all the time, another one new sizes, each once, with a pause between. Without
new sizes, with a plan for each ("exact"), and with batches in parts ("split"); in turns, each turn a process
of its own with an empty cache of kernels and plans.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

import numpy as np
from benchmarks.suite import ours
from benchmarks.suite.cases import find

MODES = ("none", "exact", "split")
PAUSE = 0.05


def measure(network: str, known: int, sizes: int, seed: int, mode: str) -> dict[str, list[float]]:
    """Seconds of each run of the known size, and of each run of a new one; what was planned meanwhile."""
    import onward.compile.planning as planning
    from onward.engine import Session

    case = find(network)
    planned: list[float] = []
    plan_model = planning.plan_model

    def counted(*arguments: object, **named: object) -> object:
        planned.append(time.perf_counter())
        return plan_model(*arguments, **named)  # type: ignore[arg-type]

    times: dict[str, list[float]] = {"known": [], "new": [], "planned": planned}
    batches = "exact" if mode == "exact" else "split"
    with (
        mock.patch.object(planning, "plan_model", counted),
        Session(ours.inference_model(case), threads=1, batches=batches) as session,  # type: ignore[arg-type]
    ):
        name = session.inputs[0].name
        x, _ = case.batch(known)
        for _ in range(20):
            session.run({name: x})
        planned.clear()
        other, _ = case.batch(130)
        ended = threading.Event()

        def arrive() -> None:
            for rows in np.random.default_rng(seed).permutation(np.arange(2, 130))[:sizes].tolist():
                if mode == "none":
                    time.sleep(PAUSE)
                else:
                    began = time.perf_counter()
                    session.run({name: other[:rows]})
                    times["new"].append(time.perf_counter() - began)
                ended.wait(PAUSE)
            ended.set()

        thread = threading.Thread(target=arrive)
        thread.start()
        while not ended.is_set():
            began = time.perf_counter()
            session.run({name: x})
            times["known"].append(time.perf_counter() - began)
        thread.join()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="lenet5", help="a network")
    parser.add_argument("--known", type=int, default=1, help="samples of the known size")
    parser.add_argument("--sizes", type=int, default=40, help="new sizes in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        found = measure(options.only, options.known, options.sizes, options.seed, options.turn)
        print(json.dumps(found))
        return
    times: dict[str, dict[str, list[float]]] = {
        mode: {"known": [], "new": [], "planned": []} for mode in MODES
    }
    for turn in range(options.rounds):
        for mode in MODES:
            with tempfile.TemporaryDirectory() as folder:
                arguments = [
                    sys.executable,
                    "-m",
                    "benchmarks.new_sizes",
                    "--turn",
                    mode,
                    "--seed",
                    str(turn),
                ]
                for option in ("only", "known", "sizes"):
                    arguments += [f"--{option}", str(getattr(options, option))]
                environment = {**os.environ, "ONWARD_CACHE_DIR": folder}
                done = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, check=True)
            for kind, seconds in json.loads(done.stdout).items():
                times[mode][kind] += seconds
    print(
        f"{options.only}, known size {options.known}, {options.sizes} new sizes, {options.rounds} turns; ms"
    )
    for mode in MODES:
        known, new = (np.array(times[mode][kind]) * 1e3 for kind in ("known", "new"))
        line = f"{mode:5}  known: " + ", ".join(
            f"p{q:g} {np.percentile(known, q):.2f}" for q in (50, 99, 99.9, 100)
        )
        if new.size:
            line += (
                f"; new: p50 {np.percentile(new, 50):.2f}, largest {new.max():.0f}, together {new.sum():.0f}"
            )
            line += f"; {len(times[mode]['planned'])} plans"
        print(line)


if __name__ == "__main__":
    main()
