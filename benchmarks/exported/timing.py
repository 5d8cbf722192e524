"""Time of an export: its training step in turns with torch's, its served form in turns with onnxruntime's."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks.exported.agreement import arrays, serving, training
from benchmarks.suite.compare import Comparison, DifferentResultsError, Settings, compare
from benchmarks.suite.ours import LEARNING_RATE, MOMENTUM
from benchmarks.suite.peers import OnnxRuntime, PeerError, Torch, TorchProcess

from onward.errors import OnwardError

__all__ = ["Ratio", "inference_ratio", "training_ratio"]

_PROBES = 5
"""Steps that tell which of torch's layouts is faster."""


@dataclass(frozen=True)
class Ratio:
    """Median milliseconds of both sides, the peer's mode, and the load when it was measured; or why not."""

    ours: float = 0.0
    peer: float = 0.0
    mode: str = ""
    load: float = 0.0
    note: str = ""

    @property
    def value(self) -> float | None:
        """Ours by the peer's."""
        return self.ours / self.peer if self.peer else None


def training_ratio(
    network: str, folder: Path, process: TorchProcess, settings: Settings, threads: int, cpu: bool
) -> Ratio:
    """A step with SGD and momentum beside torch's, eager, in the faster of its layouts."""
    inputs = list(arrays(folder / "inputs.npz").values())
    request = {
        "architecture": network.split(".", maxsplit=1)[0], "inputs": inputs, "threads": threads,
        "target": arrays(folder / "outputs.npz")["target"].astype("float32"),
        "learning_rate": LEARNING_RATE, "momentum": MOMENTUM,
    }  # fmt: skip
    try:
        runs, _ = training(folder, threads)
        taken = {}
        for mode in ("eager", "channels_last") if any(x.ndim == 4 for x in inputs) else ("eager",):
            peer = Torch(process, {**request, "mode": mode}, cpu)
            peer.times(2)
            taken[mode] = statistics.median(peer.times(_PROBES)[0])
        best = min(taken, key=lambda mode: taken[mode])
        peer = Torch(process, {**request, "mode": best}, cpu)
        found = compare(runs, peer, settings, cpu)
    except (OnwardError, PeerError, DifferentResultsError) as error:
        return Ratio(note=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return _ratio(found, best)


def inference_ratio(folder: Path, settings: Settings, threads: int, cpu: bool) -> Ratio:
    """The file that is served beside onnxruntime."""
    try:
        runs = serving(folder, threads=threads)
        peer = OnnxRuntime((folder / "serve.onnx").read_bytes(), runs.feeds, threads, cpu)
        found = compare(runs, peer, settings, cpu)
    except (OnwardError, PeerError, DifferentResultsError) as error:
        return Ratio(note=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return _ratio(found, "")


def _ratio(found: Comparison, mode: str) -> Ratio:
    ours, peer = (1e3 * statistics.median(side) for side in (found.ours, found.peer))
    return Ratio(ours, peer, mode, os.getloadavg()[0])
