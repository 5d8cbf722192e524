"""How well training divides among MPI ranks: measured here, predicted for more.

    python -m benchmarks.scaling_mpi lenet5 --batch 512

measures, in turns, one process with two threads and two ranks of one thread each at the same batch. Then it
lets two ranks, and four, do steps with the exchange of gradients and steps without it, in turns, and sets the
share of time that the exchange leaves beside what the model of `benchmarks.scaling_model` says for this
machine: for the latency and bandwidth of an all-reduce between the ranks here.

    python -m benchmarks.scaling_mpi --predict --svg docs/scaling.svg

predicts 2 to 1,024 ranks for the networks of the zoo, each rank with one thread and the batch of the
benchmarks. What a step does is measured on one process with the plan that ranks have: when each bucket of
gradients is ready, and when the first sum is needed, in processor time, as the machine may be busy.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from benchmarks.scaling_model import NETWORKS, RANKS, Network, Schedule, efficiency, plot
from benchmarks.suite.cases import CASES, find

from onward.autodiff import Collective
from onward.engine import Foreign, register_foreign
from onward.nn import zoo
from onward.parallel import MPICommunicator, world
from onward.train import SGD, Callback, Trainer
from onward.train.run import Run

__all__ = ["main"]

_NAME = "benchmark-schedule"
_CELL = {1: 4, 11: 8}
_QUICK = 0.1
"""Of steps with an exchange and without one, and of sums: as a machine is in its quiet moments."""
_SHOWN = (2, 8, 64, 1024)


@final
class _Clock:
    """A function of plans that writes down when it is called, in processor time."""

    def __init__(self) -> None:
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))
        self.started: list[tuple[float, float]] = []
        self.waited: list[float] = []
        self._entries = kind(self._start), kind(self._wait)  # keeps the addresses alive
        addresses = [ctypes.cast(entry, ctypes.c_void_p).value or 0 for entry in self._entries]
        register_foreign(_NAME, Foreign(*addresses))

    def _start(self, args: Any) -> int:
        self.started.append((time.process_time(), float(args[2] * _CELL[args[3]])))
        return 0

    def _wait(self, args: Any) -> int:
        self.waited.append(time.process_time())
        return 0

    def clear(self) -> float:
        """Forget what was; the time."""
        self.started.clear()
        self.waited.clear()
        return time.process_time()


@final
class _Steps(Callback):
    """The schedule of each step."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self._begun = 0.0
        self.found: list[Schedule] = []

    def on_train_begin(self, run: Run) -> None:
        self._begun = self._clock.clear()

    def on_step_end(self, run: Run) -> None:
        begun, now = self._begun, time.process_time()
        buckets = [(at - begun, nbytes) for at, nbytes in self._clock.started]
        self.found.append(Schedule(now - begun, buckets, self._clock.waited[0] - begun))
        self._begun = self._clock.clear()


def schedules(names: Sequence[str], steps: int) -> dict[str, Schedule]:
    """By network, the fastest of some steps of one rank with one thread."""
    clock = _Clock()
    found = {}
    for name in names:
        case = find(name)
        trainer = Trainer(
            zoo.build(name, **case.options),
            "cross_entropy",
            SGD(0.01, momentum=0.9),
            threads=1,
            gradient_transforms=[Collective(_NAME)],
        )
        batch = case.batches[0]
        taken = _Steps(clock)
        trainer.fit(case.batch(batch * 2), batch_size=batch, progress=False)
        trainer.fit(case.batch(batch * steps), batch_size=batch, progress=False, callbacks=[taken])
        found[name] = min(taken.found, key=lambda each: each.step)
        print(
            f"{name}: {found[name].step * 1e3:.1f} ms a step of {batch}, gradients of "
            f"{sum(n for _, n in found[name].buckets) / 1e6:.1f} MB in {len(found[name].buckets)} buckets, "
            f"the first after {found[name].buckets[0][0] / found[name].step:.0%} of it",
            flush=True,
        )
    return found


@final
class _Switched:
    """MPI ranks whose gradients are exchanged or not, as a switch says."""

    def __init__(self, inner: MPICommunicator) -> None:
        self.inner, self.on = inner, True
        self.rank, self.size = inner.rank, inner.size
        self.all_reduce_start, self.all_reduce_wait = inner.all_reduce_start, inner.all_reduce_wait
        self.broadcast, self.barrier = inner.broadcast, inner.barrier

    def calls(self, operation: Any) -> Any:
        """Native calls behind the switch."""
        return _SwitchedCalls(self, self.inner.calls(operation))


@final
class _SwitchedCalls:
    def __init__(self, ranks: _Switched, inner: Any) -> None:
        self._ranks, self._inner = ranks, inner
        self.functions, self.counted = inner.functions, inner.counted

    @property
    def active(self) -> bool:
        return bool(self._inner.active)

    @active.setter
    def active(self, value: bool) -> None:
        self._inner.active = value and self._ranks.on


@final
class _Ends(Callback):
    """When steps ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, run: Run) -> None:
        self.times.append(time.perf_counter())


@final
class _Turns(Callback):
    """Steps with an exchange and without one, in turns.

    Attributes:
        seconds: of each with an exchange: from when the ranks begin until the last is through.
        computing: processor time of each without one.
    """

    def __init__(self, ranks: _Switched, steps: int) -> None:
        self._ranks, self._steps = ranks, steps
        self._state: dict[str, Any] = {}
        self._begun = 0.0, 0.0
        self.seconds: list[float] = []
        self.computing: list[float] = []

    def on_train_begin(self, run: Run) -> None:
        self._state = {name: array.copy() for name, array in run.session.state.items()}
        self._next(True)

    def on_step_end(self, run: Run) -> None:
        ended = time.perf_counter(), time.process_time()
        if self._ranks.on:
            self.seconds.append(_span(self._ranks.inner, self._begun[0], ended[0]))
        else:
            self.computing.append(ended[1] - self._begun[1])
        if run.step == self._steps:  # steps without an exchange have driven the ranks apart
            run.replace_state(self._state)
        self._next(not self._ranks.on)

    def _next(self, on: bool) -> None:
        self._ranks.on = on
        _meet(self._ranks.inner)
        self._begun = time.perf_counter(), time.process_time()


def _meet(ranks: MPICommunicator) -> None:
    """Let the ranks begin at one time: who waits long for the first of these barriers sleeps now and then."""
    ranks.barrier()
    ranks.barrier()


def _span(ranks: MPICommunicator, begun: float, ended: float) -> float:
    """From the first rank's begin to the last one's end: the ranks of one machine have one clock."""
    times = np.zeros((ranks.size, 2))
    times[ranks.rank] = begun, ended
    ranks.all_reduce_wait(ranks.all_reduce_start(times))
    return float(times[:, 1].max() - times[:, 0].min())


def _quick(samples: Sequence[float]) -> float:
    return float(np.quantile(samples, _QUICK))


def _exchanges(ranks: MPICommunicator, count: int, turns: int) -> list[float]:
    """Seconds of an all-reduce of so many float32."""
    block = np.zeros(count, np.float32)
    samples = []
    for _ in range(turns):
        ranks.barrier()
        begun = time.perf_counter()
        ranks.all_reduce_wait(ranks.all_reduce_start(block))
        samples.append(time.perf_counter() - begun)
    return samples


def _turns(ranks: MPICommunicator, work: float, turns: int) -> list[float]:
    """What each sum of one number costs ranks that compute before it, and may have to take turns at that.

    Args:
        ranks: all call this.
        work: seconds of processor time before each sum.
        turns: how many sums.

    Returns:
        Seconds of each turn beyond those in which the cores can do the work of all ranks.
    """
    block = np.zeros(1, np.float32)
    samples = []
    for _ in range(turns):
        _meet(ranks)
        begun, until = time.perf_counter(), time.process_time() + work
        while time.process_time() < until:
            pass
        ranks.all_reduce_wait(ranks.all_reduce_start(block))
        samples.append(_span(ranks, begun, time.perf_counter()) - _stretch(ranks.size) * work)
    return samples


def _stretch(ranks: int) -> float:
    """How much longer the work of so many ranks takes than that of one, by the cores that they share."""
    return max(1.0, ranks / len(os.sched_getaffinity(0)))


def _work(name: str, batch: int, steps: int, kind: str) -> None:
    """One process, or one rank: prints what it found."""
    case = find(name)
    model = zoo.build(name, **case.options)
    found: dict[str, Any] = {}
    if kind == "switched":
        ranks = _Switched(world())
        trainer = Trainer(model, "cross_entropy", SGD(0.001), threads=1, parallel=ranks)
        turns = _Turns(ranks, 2 * steps)
        share = batch * ranks.size
        trainer.fit(case.batch(2 * share), batch_size=share, progress=False)
        trainer.fit(case.batch(2 * steps * share), batch_size=share, progress=False, callbacks=[turns])
        found["step"], found["computing"] = turns.seconds, turns.computing
        found["sum"] = _turns(ranks.inner, _quick(turns.computing) / 2, 4 * steps)
        found["short"] = _exchanges(ranks.inner, 1, 200)
        found["large"] = _exchanges(ranks.inner, 1 << 20, 40)
        first = ranks.rank == 0
    else:
        threads = int(kind)
        trainer = Trainer(
            model, "cross_entropy", "sgd", threads=threads, parallel="mpi" if threads == 1 else None
        )
        trainer.fit(case.batch(2 * batch), batch_size=batch, progress=False)
        ends = _Ends()
        trainer.fit(case.batch((steps + 1) * batch), batch_size=batch, progress=False, callbacks=[ends])
        found["step"] = statistics.median(np.diff(ends.times))
        first = threads > 1 or world().rank == 0
    if first:
        print(json.dumps(found), flush=True)


def _run(command: Sequence[str], ranks: int) -> dict[str, Any]:
    mpirun = shutil.which("mpirun") or str(Path(sys.executable).with_name("mpirun"))
    launch = [mpirun, "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
    done = subprocess.run([*launch, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join([*launch, *command])} ended with code {done.returncode}: {done.stderr}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _measure(name: str, batch: int, steps: int, rounds: int) -> None:
    base = [sys.executable, "-m", "benchmarks.scaling_mpi", name, "--steps", str(steps)]
    whole = [*base, "--batch", str(batch), "--work"]
    pairs = []
    for _ in range(rounds):
        alone, joined = _run([*whole, "2"], 1)["step"], _run([*whole, "1"], 2)["step"]
        pairs.append(alone / joined)
        print(
            f"two threads {alone * 1e3:.2f} ms a step of {batch}, two ranks {joined * 1e3:.2f} ms", flush=True
        )
    print(
        f"{name}: efficiency of two ranks against two threads {statistics.median(pairs):.3f} "
        f"({min(pairs):.3f} … {max(pairs):.3f})"
    )
    schedule = schedules([name], steps)[name]
    cores = len(os.sched_getaffinity(0))
    each = [*base, "--batch", str(find(name).batches[0]), "--work", "switched"]
    network: Network | None = None
    for ranks in (2, 4):
        got = [_run(each, ranks) for _ in range(rounds)]
        step, computing, turn, short, large = (
            _quick([seconds for one in got for seconds in one[key]])
            for key in ("step", "computing", "sum", "short", "large")
        )
        if network is None:
            network = Network(short / 2, (1 << 22) / max(large - short, 1e-9), cores)
            print(f"here: {network.latency * 1e6:.1f} us, {network.bandwidth / 1e9:.2f} GB/s")
        alone = _stretch(ranks) * computing
        exchange = schedule.replay(network, ranks, hidden=False, turn=max(turn, 0.0)) - schedule.step
        print(
            f"{ranks} ranks on {cores} cores: {computing * 1e3:.2f} ms of processor time a step, "
            f"{step * 1e3:.2f} ms with the exchange of gradients; a sum of ranks that compute costs "
            f"{turn * 1e6:.0f} us; share of computing measured {alone / step:.3f}, predicted "
            f"{alone / (alone + exchange):.3f}",
            flush=True,
        )


def _predict(names: Sequence[str], steps: int, faster: float, svg: Path | None) -> None:
    found = {name: schedule.faster(faster) for name, schedule in schedules(names, steps).items()}
    columns = [f"{label}, {ranks}" for label in NETWORKS for ranks in _SHOWN]
    print("\n| network | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, schedule in found.items():
        cells = [
            " … ".join(f"{efficiency(schedule, network, ranks, hidden=h):.2f}" for h in (False, True))
            for network in NETWORKS.values()
            for ranks in _SHOWN
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if svg is not None:
        svg.write_text(plot(found), "utf-8")
        print(f"{svg}: {len(found)} networks, {RANKS[0]} to {RANKS[-1]:,} ranks")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [case.network for case in CASES]
    parser.add_argument("networks", nargs="*", metavar="network", help=", ".join(names))
    parser.add_argument("--batch", type=int, help="of two threads and of two ranks together")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--predict", action="store_true", help="more ranks, for these networks or all")
    parser.add_argument(
        "--faster", type=float, default=1.0, help="with --predict: ranks that compute so many times as fast"
    )
    parser.add_argument("--svg", type=Path, help="with --predict: a plot")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := [name for name in args.networks if name not in names]:
        parser.error(f"no network {unknown[0]!r}: {', '.join(names)}")
    if args.predict:
        _predict(args.networks or names, args.steps, args.faster, args.svg)
        return 0
    if len(args.networks) != 1:
        parser.error("name one network, or say --predict")
    (name,) = args.networks
    batch = args.batch or find(name).batches[-1]
    if args.work is not None:
        _work(name, batch, args.steps, args.work)
        return 0
    _measure(name, batch, args.steps, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
