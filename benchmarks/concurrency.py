"""Several threads that share one session: throughput in units of one thread that calls in turn.

python -m benchmarks.concurrency [--only NAME] [--batch N] [--callers N] [--rounds N]

Each turn runs the model as often by one caller as by all callers together, and the outputs must have the same
bits. Processor time says what the ratio would be with all cores free: their number times the first time over
the second.
Goal: four callers of ResNet-18 at batch 1 on two cores get at least 1.8 times the throughput.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

from benchmarks.suite import ours
from benchmarks.suite.cases import find

import onward.compile.planning as planning
from onward.engine import Session


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="resnet18", help="a network")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of a run that goes on alone")
    parser.add_argument("--runs", type=int, default=3, help="of each caller in a turn")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    case = find(options.only)
    x, _ = case.batch(options.batch)
    planned: list[str] = []
    plan_model = planning.plan_model

    def counted(*arguments: object, **named: object) -> object:
        planned.append(threading.current_thread().name)
        return plan_model(*arguments, **named)  # type: ignore[arg-type]

    with (
        mock.patch.object(planning, "plan_model", counted),
        Session(ours.inference_model(case), threads=options.threads) as session,
        ThreadPoolExecutor(options.callers) as pool,
    ):
        feed = {session.inputs[0].name: x}
        start = threading.Barrier(options.callers)

        def call(_: int) -> list[bytes]:
            start.wait()
            return [session.run(feed)[session.outputs[0].name].tobytes() for _ in range(options.runs)]

        first = {result for results in pool.map(call, range(options.callers)) for result in results}
        ratios, least, cost = [], [float("inf")] * 2, [float("inf")] * 2
        for _ in range(options.rounds):
            began, used = time.perf_counter(), time.process_time()
            for _ in range(options.callers * options.runs):
                first.add(session.run(feed)[session.outputs[0].name].tobytes())
            turn, used_turn = time.perf_counter(), time.process_time()
            for results in pool.map(call, range(options.callers)):
                first.update(results)
            ended, used_end = time.perf_counter(), time.process_time()
            ratios.append((turn - began) / (ended - turn))
            least = [min(least[0], turn - began), min(least[1], ended - turn)]
            cost = [min(cost[0], used_turn - used), min(cost[1], used_end - used_turn)]
        if len(first) != 1:
            raise SystemExit("the outputs differ")
    count = options.callers * options.runs
    print(
        f"{options.only}, batch {options.batch}, {os.cpu_count()} cores: {count / least[0]:.1f} runs a "
        f"second by one caller, {count / least[1]:.1f} by {options.callers}; ratio of the best turns "
        f"{least[0] / least[1]:.2f}, median of {options.rounds} pairs {statistics.median(ratios):.2f}; "
        f"processor time of a run {cost[0] / count * 1e3:.2f} and {cost[1] / count * 1e3:.2f} ms; "
        f"{len(planned)} plans made"
    )


if __name__ == "__main__":
    main()
