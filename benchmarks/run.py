"""Training steps against torch, inference against onnxruntime and torch: side by side, in turns, in one run.

python -m benchmarks.run [--only NAME] [--kind training|inference] [--seconds S] [--rounds N] [--compile]
                         [--peers torch,onnxruntime] [--cpu]

Both sides have the same weights and data, two threads and float32; losses and logits must agree before
anything is timed. torch runs in an interpreter of its own, $ONWARD_TORCH_PYTHON, in its fastest mode: NCHW,
channels_last, and with --compile torch.compile too. Its optimizer is the fused one. Its inputs are in its
layout beforehand, while ours arrive as NCHW NumPy arrays. torch allocates its outputs at each step, as it
does for its users. Dropout is off on both sides.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from benchmarks.suite import ours, results
from benchmarks.suite.cases import CASES, INFERENCE_EACH, Case, Kind
from benchmarks.suite.compare import Comparison, DifferentResultsError, Settings, compare
from benchmarks.suite.peers import OnnxRuntime, Peer, PeerError, Torch, TorchProcess, torch_python
from benchmarks.suite.results import Row

from onward.errors import OnwardError

_COMPILE_SECONDS = 300
"""torch.compile is given up after this."""


@dataclass
class _Run:
    """What the comparisons share. The torch process is started when it is first needed."""

    options: argparse.Namespace
    console: Console
    process: TorchProcess | None = None

    @property
    def threads(self) -> int:
        return 1 if self.options.cpu else self.options.threads

    def settings(self, kind: Kind) -> Settings:
        """Inference takes half the time, as there are four comparisons a network."""
        return Settings(self.options.seconds / (2 if kind == "inference" else 1), self.options.rounds)

    def torch(self) -> TorchProcess:
        """Raises `PeerError` when torch cannot be started."""
        if self.process is None or not self.process.alive:
            python = torch_python()
            if python is None:
                raise PeerError("set ONWARD_TORCH_PYTHON to an interpreter that has torch and numpy")
            self.process = TorchProcess(python, self.threads)
        return self.process

    def close(self) -> None:
        if self.process is not None:
            self.process.close()

    def fastest_torch(
        self, case: Case, kind: Kind, batch: int, weights: Mapping[str, np.ndarray[Any, Any]]
    ) -> tuple[Torch, str]:
        """The network in torch's fastest mode, and what the modes took.

        Raises:
            PeerError: no mode works.
        """
        modes = ["eager", "channels_last"] if case.convolutional else ["eager"]
        if self.options.compile:
            modes += [f"compile {m}".replace(" eager", "") for m in list(modes)]
        taken: dict[str, float] = {}
        told: list[str] = []
        for mode in modes:
            try:
                peer = Torch.of_case(
                    self.torch(), case, kind, batch, mode, weights, self.threads, self.options.cpu
                )
                limit = _COMPILE_SECONDS if mode.startswith("compile") else 600
                seconds = peer.times(2, limit)[0][1:]
                count = max(2, min(50, int(1.5 / max(seconds[0], 1e-6))))
                taken[mode] = statistics.median(peer.times(count)[0])
                told.append(f"{mode} {taken[mode] * 1e3:.2f}")
            except PeerError as error:
                told.append(f"{mode} failed: {error}")
        if not taken:
            raise PeerError("; ".join(told))
        best = min(taken, key=lambda mode: taken[mode])
        peer = Torch.of_case(self.torch(), case, kind, batch, best, weights, self.threads, self.options.cpu)
        return peer, f"{best} (ms: {', '.join(told)})" if len(told) > 1 else best

    def row(self, kind: Kind, case: Case, batch: int, peer: str) -> Row:
        """One comparison; what goes wrong is its note."""
        goal = None
        if kind == "training":
            goal = case.goal
        elif peer == "onnxruntime":
            goal = INFERENCE_EACH
        clock = "processor" if self.options.cpu else "wall"
        blank = Row(
            kind, case.network, batch, peer, None, None, None, goal, threads=self.threads, clock=clock
        )
        try:
            make = ours.training if kind == "training" else ours.inference
            runner = make(case, batch, self.threads)
            blank = replace(blank, note=_uncompiled(runner))
        except OnwardError as error:
            return replace(blank, note=" ".join(f"Onward: {error}".split()))
        try:
            other: Peer
            if peer == "torch":
                other, mode = self.fastest_torch(case, kind, batch, ours.weights(ours.model(case)))
            else:
                other = OnnxRuntime(ours.deployed(case), runner.feeds, self.threads, self.options.cpu)
                mode = ""
            found = compare(runner, other, self.settings(kind), self.options.cpu)
        except PeerError as error:
            return replace(blank, note=f"{peer}: {error}")
        except (OnwardError, DifferentResultsError) as error:
            return replace(blank, note=f"{type(error).__name__}: {error}")
        return _filled(replace(blank, mode=mode), found)


def _filled(row: Row, found: Comparison) -> Row:
    return replace(
        row,
        ours_s=statistics.median(found.ours),
        peer_s=statistics.median(found.peer),
        ratio=found.ratio,
        ours_min_s=min(found.ours),
        peer_min_s=min(found.peer),
    )


def _uncompiled(runner: ours.Ours) -> str:
    found = runner.missing()
    return f"not compiled: {', '.join(found)}" if found else ""


def _comparisons(options: argparse.Namespace) -> Iterator[tuple[Kind, Case, int, str]]:
    peers = options.peers.split(",")
    for case in CASES:
        if options.only and case.network not in options.only.split(","):
            continue
        if options.kind in (None, "training") and "torch" in peers:
            for batch in case.batches:
                yield "training", case, batch, "torch"
        if options.kind in (None, "inference"):
            for batch in case.inference_batches:
                for peer in ("onnxruntime", "torch"):
                    if peer in peers:
                        yield "inference", case, batch, peer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="networks, separated by commas")
    parser.add_argument("--kind", choices=("training", "inference"))
    parser.add_argument("--peers", default="torch,onnxruntime", help="inference against torch takes longest")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="for one training comparison")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side, at most")
    parser.add_argument("--compile", action="store_true", help="try torch.compile: minutes for deep networks")
    parser.add_argument("--cpu", action="store_true", help="one thread, processor time: for a busy machine")
    parser.add_argument("--out", type=Path, default=results.LATEST)
    options = parser.parse_args()
    if options.only and (unknown := set(options.only.split(",")) - {case.network for case in CASES}):
        sys.exit(f"no benchmark named {', '.join(unknown)}; there are {', '.join(c.network for c in CASES)}")
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(f"{platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}")
    run = _Run(options, console)
    rows: list[Row] = []
    try:
        for comparison in _comparisons(options):
            row = run.row(*comparison)
            rows.append(row)
            if not options.cpu or options.out != results.LATEST:
                results.save(options.out, results.merge(results.load(options.out), [row]))
            ratio = "missing" if row.ratio is None else f"{row.ratio:.2f}"
            console.print(f"{row.kind} {row.name} batch {row.batch} / {row.peer}: {ratio}")
    finally:
        run.close()
    results.show(rows, console)


if __name__ == "__main__":
    main()
