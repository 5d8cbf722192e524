"""An export in our engine: outputs beside onnxruntime's, gradients beside autograd's, and both plans.

The forward error is the largest difference relative to the largest element, in the file that is trained and
in the one that is served. That of a parameter's gradient is the norm of the difference over the norm; 1e-4 of
the largest gradient's norm stands for smaller ones, 1e-3 of it for those that are zero in float64, such as
a bias before batch normalization: what float32 leaves there is rounding of sums of thousands.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from benchmarks.suite.ours import LEARNING_RATE, MOMENTUM, Ours

from onward.autodiff import TrainingStep, training_step
from onward.engine.compiled import CompiledEngine
from onward.graph import Array
from onward.model import load, trainable_initializers, upgrade
from onward.train import MSE, SGD

__all__ = ["ARCHITECTURES", "NETWORKS", "Outcome", "arrays", "check", "export", "serving", "training"]

ARCHITECTURES = (
    "vit", "bert", "gpt2", "t5_encoder", "whisper_encoder", "swin", "efficientnet", "convnext", "mobilenetv3",
    "densenet", "regnet", "resnet", "timm_vit", "timm_swin", "unet", "yolo", "gru", "lstm", "tcn", "gnn",
)  # fmt: skip
NETWORKS = tuple(f"{name}.{exporter}" for name in ARCHITECTURES for exporter in ("script", "dynamo"))
"""Every architecture by every exporter."""

FORWARD, GRADIENTS = 1e-4, 1e-3
"""Errors at most."""
_SMALL, _OF_ZERO, _ZERO = 1e-4, 1e-3, 1e-9
_ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What became of a network; errors are relative, None where it did not come so far."""

    network: str
    forward: float | None = None
    gradients: float | None = None
    parameters: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def export(networks: Sequence[str], folder: Path) -> dict[str, str]:
    """Let torch export networks into folders of their names, unless it has; the reasons where it cannot."""
    missing = [name for name in networks if not (folder / name / "gradients.npz").exists()]
    python = os.environ.get("ONWARD_TORCH_PYTHON")
    if not missing:
        return {}
    if not python:
        return dict.fromkeys(missing, "ONWARD_TORCH_PYTHON names no interpreter with torch")
    folder.mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"} | {"PYTHONPATH": str(_ROOT)}
    ran = subprocess.run(
        [python, "-m", "benchmarks.exported.torch_side", str(folder), *missing],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False, env=environment,
    )  # fmt: skip
    told = dict(line.split(" ", 1) for line in ran.stdout.splitlines() if line.split(".")[0] in ARCHITECTURES
                and " " in line)  # fmt: skip
    return {
        name: told.get(name, f"torch ended with code {ran.returncode}")
        for name in missing
        if not (folder / name / "gradients.npz").exists()
    }


def serving(folder: Path, name: str = "serve.onnx", threads: int | None = None) -> Ours:
    """The forward pass of a file of an export."""
    return Ours(
        CompiledEngine(load(folder / name), None, threads), arrays(folder / "inputs.npz"), "output", {}
    )


def training(folder: Path, threads: int | None = None) -> tuple[Ours, TrainingStep]:
    """The step that trains all parameters which torch has a gradient for."""
    wanted, target = arrays(folder / "gradients.npz"), arrays(folder / "outputs.npz")["target"]
    model = upgrade(load(folder / "model.onnx"))
    step = training_step(
        model, {"output": MSE()}, SGD(learning_rate=LEARNING_RATE, momentum=MOMENTUM),
        _names(model, wanted), expose_gradients=True,
    )  # fmt: skip
    feeds = {
        **arrays(folder / "inputs.npz"),
        step.targets["output"]: target.astype(np.float32),
        step.learning_rate: np.array(LEARNING_RATE, np.float32),
    }
    feeds |= {n: np.ones((), np.int64) for n in (step.step, step.seed, step.update) if n is not None}
    taken = {value.name for value in step.model.graph.inputs}
    engine = CompiledEngine(step.model, step.bindings, threads)
    start = {name: engine.fixed[name].copy() for name in step.bindings}
    return Ours(engine, {n: a for n, a in feeds.items() if n in taken}, step.loss, start), step


def check(network: str, folder: Path) -> Outcome:
    """Run an export and compare. What goes wrong is among the problems."""
    found = Outcome(network)
    try:
        for name, kind in (("serve.onnx", "inference"), ("model.onnx", "forward in training mode")):
            _forward(found, folder, name, kind)
        _backward(found, folder)
    except Exception as error:  # noqa: BLE001 - every network gets its line
        found.problems.append(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
    return found


def _forward(found: Outcome, folder: Path, name: str, kind: str) -> None:
    import onnxruntime

    runs = serving(folder, name)
    ours = runs.run()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    witness = onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
    theirs = witness.run(["output"], dict(runs.feeds))[0]
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    found.forward = max(found.forward or 0.0, error)
    if not error < FORWARD:
        found.problems.append(f"{kind}: outputs are {error:.1e} from onnxruntime's")
    _plan(found, runs, kind)


def _backward(found: Outcome, folder: Path) -> None:
    runs, step = training(folder)
    _plan(found, runs, "training")
    wanted = arrays(folder / "gradients.npz")
    results = runs.engine.run(runs.feeds)
    largest = max(float(np.linalg.norm(a)) for a in wanted.values())
    found.parameters = len(step.gradients)
    if without := sorted(set(wanted) - set(step.gradients)):
        found.problems.append(
            f"{len(without)} parameters are not in the file by name: {', '.join(without[:3])}"
        )
    errors = {}
    for name, output in step.gradients.items():
        expected, got = wanted[name], results[output]
        got = got.reshape(expected.shape) if got.size == expected.size and got.ndim != expected.ndim else got
        norm = float(np.linalg.norm(expected))
        scale = max(norm, (_OF_ZERO if norm < _ZERO * largest else _SMALL) * largest)
        errors[name] = float(np.linalg.norm(got - expected)) / scale
    worst = max(errors, key=lambda name: errors[name])
    found.gradients = errors[worst]
    if not found.gradients < GRADIENTS:
        found.problems.append(f"the gradient of {worst} is {found.gradients:.1e} from torch's")


def _names(model: ir.Model, wanted: Mapping[str, Array]) -> list[str]:
    """Parameters that keep torch's names."""
    found = [name for name in wanted if name in model.graph.initializers]
    if not found:
        raise LookupError(f"no parameter keeps its name; the file has {list(model.graph.initializers)[:5]}")
    trainable = set(trainable_initializers(model))
    return [name for name in found if name in trainable]


def _plan(found: Outcome, runs: Ours, kind: str) -> None:
    plan = runs.engine.plan({name: a.shape for name, a in runs.feeds.items()})
    if plan is None:
        found.problems.append(f"{kind}: no static plan")
        return
    found.calls[kind] = len(plan.rows)
    if slow := Counter(f"{row.operators.split()[0]}: {row.reason}" for row in plan.rows if row.reason):
        told = "; ".join(f"{n} × {reason}" for reason, n in slow.most_common())
        found.problems.append(f"{kind}: NumPy steps: {told}")


@functools.lru_cache(maxsize=8)
def arrays(path: Path) -> dict[str, Array]:
    """What a file of arrays holds."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
