"""Where the time of a step goes: every call of a plan with its seconds, GF/s and share of the FMA peak.

python -m benchmarks.layers NAME [--batch N] [--inference] [--threads N] [--cpu] [--top N] [--in-order]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.kernels import peak
from benchmarks.suite import ours
from benchmarks.suite.cases import find

from onward.compile.codegen.target import host_target
from onward.engine.plan import PlanRow
from onward.engine.team import Team


@dataclass(frozen=True)
class Measured:
    """One call of the plan and the seconds it takes alone."""

    row: PlanRow
    seconds: float


def measure(
    runner: ours.Ours, rounds: int, clock: Callable[[], float]
) -> tuple[list[Measured], list[float], float]:
    """Every call's seconds, the seconds of whole steps, and the FMA peak in GF/s."""
    plan = runner.engine.plan({name: array.shape for name, array in runner.feeds.items()})
    if plan is None:
        raise SystemExit("shapes depend on data: there is no plan")
    runner.times(2)
    whole, _ = runner.times(max(3, rounds), clock)
    with Team(plan.threads) as team:
        top = peak(team, host_target(), 0.1)
        seconds = plan.time_calls(runner.feeds, team, rounds, clock=clock)
        top = max(top, peak(team, host_target(), 0.1))
    return [Measured(row, s) for row, s in zip(plan.rows, seconds, strict=True)], whole, top


def table(calls: list[Measured], top: float, total: float) -> list[str]:
    """One line for each call."""
    lines = [f"{'µs':>9} {'%':>5} {'GF/s':>6} {'peak':>5} {'GB/s':>6}  kernel | operators"]
    for call in calls:
        gf, gb = call.row.flops / call.seconds / 1e9, call.row.bytes / call.seconds / 1e9
        reason = f" [{call.row.reason}]" if call.row.reason else ""
        lines.append(
            f"{call.seconds * 1e6:9.1f} {call.seconds / total:5.1%} {gf:6.1f} {gf / top:5.0%} {gb:6.1f}"
            f"  {call.row.kernel} | {call.row.operators[:70]}{reason}"
        )
    return lines


def families(calls: list[Measured], total: float) -> list[str]:
    """Seconds, calls and GF/s by the kernel's first word."""
    groups: dict[str, list[Measured]] = defaultdict(list)
    for call in calls:
        groups[call.row.kernel.split()[0]].append(call)
    lines = [f"{'µs':>9} {'%':>5} {'calls':>5} {'GF/s':>6}  kind"]
    for kind, members in sorted(groups.items(), key=lambda g: -sum(c.seconds for c in g[1])):
        taken = sum(c.seconds for c in members)
        flops = sum(c.row.flops for c in members)
        lines.append(
            f"{taken * 1e6:9.1f} {taken / total:5.1%} {len(members):5} {flops / taken / 1e9:6.1f}  {kind}"
        )
    return lines


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line, of this process's by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--batch", type=int, help="default: that of the training goal; 1 for inference")
    parser.add_argument("--inference", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="processor time of one thread: for a busy machine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--top", type=int, default=30, help="calls to print; 0: all")
    parser.add_argument("--in-order", action="store_true", help="in the plan's order, not by time")
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    case = find(options.name)
    batch = options.batch or (1 if options.inference else case.batches[-1])
    make = ours.inference if options.inference else ours.training
    threads = 1 if options.cpu else options.threads
    clock = time.thread_time if options.cpu else time.perf_counter
    calls, whole, top = measure(make(case, batch, threads), options.rounds, clock)
    total = sum(c.seconds for c in calls)
    flops = sum(c.row.flops for c in calls)
    print(
        f"{case.network}, batch {batch}, {'inference' if options.inference else 'training'}, "
        f"{threads} threads, {'processor' if options.cpu else 'wall'} time: whole step min "
        f"{min(whole) * 1e3:.3f} ms, median {statistics.median(whole) * 1e3:.3f} ms; {len(calls)} calls "
        f"alone {total * 1e3:.3f} ms; {flops / 1e9:.2f} GF, {flops / total / 1e9:.0f} GF/s, peak {top:.0f}"
    )
    print("\n".join(families(calls, total)))
    ordered = calls if options.in_order else sorted(calls, key=lambda c: -c.seconds)
    print("\n".join(table(ordered[: options.top or None], top, total)))


if __name__ == "__main__":
    main()
