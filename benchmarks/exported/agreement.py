"""An export in our engine: outputs beside onnxruntime's, gradients beside autograd's, and both plans.

The forward error is the largest difference relative to the largest element, in the file that is trained and
in the one that is served. That of a parameter's gradient is the norm of the difference over the norm, in
float32 and in float64, where the interpreter runs the step: the latter says that what is left in float32 is
rounding. 1e-4 of the largest gradient's norm stands for smaller ones. Those that are zero in float64, in
torch and here, such as a bias before batch normalization, are sums of thousands of numbers that cancel;
what float32 leaves of them is taken relative to 1e-3 of the largest gradient.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from benchmarks.suite.ours import LEARNING_RATE, MOMENTUM, Ours

from onward.autodiff import TrainingStep, training_step
from onward.engine import StepSession
from onward.engine.compiled import CompiledEngine
from onward.graph import Array, numpy_dtype
from onward.model import infer_shapes, load, trainable_initializers, upgrade
from onward.passes import cast_floats, fold_shapes
from onward.train import MSE, SGD

__all__ = ["ARCHITECTURES", "NETWORKS", "Outcome", "arrays", "check", "export", "serving", "training"]

ARCHITECTURES = (
    "vit", "bert", "gpt2", "t5_encoder", "whisper_encoder", "swin", "efficientnet", "convnext", "mobilenetv3",
    "densenet", "regnet", "resnet", "timm_vit", "timm_swin", "unet", "yolo", "gru", "lstm", "tcn", "gnn",
)  # fmt: skip
NETWORKS = tuple(f"{name}.{exporter}" for name in ARCHITECTURES for exporter in ("script", "dynamo"))
"""Every architecture by every exporter."""

FORWARD, GRADIENTS, EXACT = 1e-4, 1e-3, 1e-6
"""Errors at most: of outputs, of gradients, of gradients in float64. Files have constants such as the root of
a width in float32, which bounds the last one."""
_SMALL, _OF_ZERO, _ZERO = 1e-4, 1e-3, 1e-9
_ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What became of a network; errors are relative, None where it did not come so far."""

    network: str
    forward: float | None = None
    gradients: float | None = None
    exact: float | None = None
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
    step, feeds = _step(folder)
    engine = CompiledEngine(step.model, step.bindings, threads)
    start = {name: engine.fixed[name].copy() for name in step.bindings}
    return Ours(engine, feeds, step.loss, start), step


def _step(folder: Path, dtype: type[np.floating[Any]] = np.float32) -> tuple[TrainingStep, dict[str, Array]]:
    """The step in a type of floats, and what it is fed."""
    model = upgrade(load(folder / "model.onnx"))
    if dtype != np.float32:
        # integers that follow from floats, such as the buckets of T5's distances, stay those of float32
        model = infer_shapes(cast_floats(fold_shapes(model), ir.DataType.from_numpy(np.dtype(dtype))))
    step = training_step(
        model, {"output": MSE()}, SGD(learning_rate=LEARNING_RATE, momentum=MOMENTUM),
        _names(model, arrays(folder / "gradients.npz")), expose_gradients=True,
    )  # fmt: skip
    feeds = {
        **arrays(folder / "inputs.npz"),
        step.targets["output"]: arrays(folder / "outputs.npz")["target"],
        step.learning_rate: np.array(LEARNING_RATE, np.float32),
    }
    feeds |= {n: np.ones((), np.int64) for n in (step.step, step.seed, step.update) if n is not None}
    taken = {value.name: numpy_dtype(value.dtype) for value in step.model.graph.inputs if value.dtype}
    return step, {n: np.asarray(a, taken[n]) for n, a in feeds.items() if n in taken}


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
    found.parameters = len(step.gradients)
    names = set(trainable_initializers(upgrade(load(folder / "model.onnx"))))
    for told, missing in (
        ("in the file", set(wanted) - set(step.gradients)),
        ("trained", set(wanted) - names),
    ):
        if missing:
            found.problems.append(
                f"{len(missing)} parameters are not {told}: {', '.join(sorted(missing)[:3])}"
            )
    exact, feeds = _step(folder, np.float64)
    results = StepSession(exact.model, exact.bindings, engine="interpreter").run(feeds)
    worst, found.exact = _furthest(wanted, {n: results[o] for n, o in exact.gradients.items()}, _SMALL)
    if not found.exact < EXACT:
        found.problems.append(f"in float64 the gradient of {worst} is {found.exact:.1e} from torch's")
    results = runs.engine.run(runs.feeds)
    got = {n: results[o] for n, o in step.gradients.items()}
    worst, found.gradients = _furthest(wanted, got, _OF_ZERO)
    if not found.gradients < GRADIENTS:
        found.problems.append(f"the gradient of {worst} is {found.gradients:.1e} from torch's")


def _furthest(wanted: Mapping[str, Array], got: Mapping[str, Array], of_zero: float) -> tuple[str, float]:
    """The parameter with the largest error, and that error."""
    largest = max(float(np.linalg.norm(a)) for a in wanted.values())
    errors = {}
    for name, array in got.items():
        expected = wanted[name]
        if array.size == expected.size and array.ndim != expected.ndim:
            array = array.reshape(expected.shape)
        norm = float(np.linalg.norm(expected))
        scale = max(norm, (of_zero if norm < _ZERO * largest else _SMALL) * largest)
        errors[name] = float(np.linalg.norm(array - expected)) / scale
    worst = max(errors, key=lambda name: errors[name])
    return worst, errors[worst]


def _names(model: ir.Model, wanted: Mapping[str, Array]) -> list[str]:
    """Parameters that keep torch's names."""
    found = [name for name in wanted if name in model.graph.initializers]
    if not found:
        raise LookupError(f"no parameter keeps its name; the file has {list(model.graph.initializers)[:5]}")
    return found


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
