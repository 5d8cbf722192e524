"""Networks that torch exports, in Onward: forward beside onnxruntime, gradients beside autograd, plans.

    ONWARD_TORCH_PYTHON=… python -m benchmarks.exported.sweep [ARCHITECTURE.EXPORTER …]

ONWARD_TORCH_PYTHON names an interpreter with torch, onnxscript, transformers and timm. Exports are kept in
ONWARD_EXPORTS (default: a folder of the temporary one). Each network gives one line: the largest difference
of outputs relative to their largest element, the largest relative error of a parameter's gradient (norm of
the difference over the norm; 1e-4 of the largest gradient's norm stands for smaller ones, whose true value is
often zero), and the calls of both plans with those that NumPy makes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onward.autodiff import training_step
from onward.engine import Session
from onward.engine.compiled import CompiledEngine
from onward.graph import Array
from onward.model import load, trainable_initializers, upgrade
from onward.train import MSE, SGD

__all__ = ["NETWORKS", "Outcome", "compare", "export", "main"]

_ARCHITECTURES = (
    "vit", "bert", "gpt2", "t5_encoder", "whisper_encoder", "swin", "efficientnet", "convnext", "mobilenetv3",
    "densenet", "regnet", "resnet", "timm_vit", "timm_swin", "unet", "gru", "lstm", "tcn", "gnn",
)  # fmt: skip
NETWORKS = tuple(f"{name}.{exporter}" for name in _ARCHITECTURES for exporter in ("script", "dynamo"))
"""Every architecture by every exporter."""

_NEGLIGIBLE = 1e-4


@dataclass
class Outcome:
    """What became of a network; errors are relative, None where it did not come so far."""

    network: str
    forward: float | None = None
    gradients: float | None = None
    worst: str = ""
    parameters: int = 0
    inference: str = ""
    training: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether outputs and gradients agree and both plans exist."""
        return not self.problems

    def __str__(self) -> str:
        def number(x: float | None) -> str:
            return "-" if x is None else f"{x:.1e}"

        head = (
            f"{self.network:24} forward {number(self.forward):8} gradients {number(self.gradients):8} "
            f"of {self.parameters:3} parameters; inference {self.inference or '-'}; "
            f"training {self.training or '-'}"
        )
        return "\n".join([head, *(f"    {problem}" for problem in self.problems)])


def export(network: str, folder: Path) -> str | None:
    """Let torch export a network into a folder, unless it has; the reason where it cannot."""
    if (folder / "gradients.npz").exists():
        return None
    python = os.environ.get("ONWARD_TORCH_PYTHON")
    if not python:
        return "ONWARD_TORCH_PYTHON names no interpreter with torch"
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("torch_side.py")
    ran = subprocess.run(
        [python, str(script), *network.split("."), str(folder)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    lines = [line for line in ran.stderr.splitlines() if line and not line.startswith(" ")]
    return None if ran.returncode == 0 else f"torch does not export it: {lines[-1] if lines else '?'}"


def compare(network: str, folder: Path) -> Outcome:
    """Run an export in both engines and compare."""
    found = Outcome(network)
    try:
        _forward(found, folder)
        _backward(found, folder)
    except Exception as error:  # noqa: BLE001 - every network gets its line
        if "-v" in sys.argv:
            traceback.print_exc()
        found.problems.append(f"{type(error).__name__}: {str(error)[:1500]}")
    return found


def _forward(found: Outcome, folder: Path) -> None:
    import onnxruntime

    inputs = _arrays(folder / "inputs.npz")
    model = load(folder / "model.onnx")
    with Session(model) as session:
        ours = session.run(inputs)["output"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    witness = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    theirs = witness.run(["output"], inputs)[0]
    # training mode is kept in the file: what onnxruntime makes of it is what torch made of it
    found.forward = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not found.forward < 1e-4:
        found.problems.append("the outputs are not onnxruntime's")
    engine = CompiledEngine(model)
    found.inference = _plan(found, engine, {name: a.shape for name, a in inputs.items()}, "inference")
    engine.close()


def _backward(found: Outcome, folder: Path) -> None:
    inputs, wanted = _arrays(folder / "inputs.npz"), _arrays(folder / "gradients.npz")
    target = _arrays(folder / "outputs.npz")["target"].astype(np.float32)
    model = upgrade(load(folder / "model.onnx"))
    names = _names(model, wanted)
    step = training_step(model, {"output": MSE()}, SGD(learning_rate=0.0), list(names), expose_gradients=True)
    feeds = {**inputs, step.targets["output"]: target, step.learning_rate: np.zeros((), np.float32)}
    feeds |= {n: np.ones((), np.int64) for n in (step.step, step.seed, step.update) if n is not None}
    engine = CompiledEngine(step.model, step.bindings)
    found.training = _plan(found, engine, {name: a.shape for name, a in feeds.items()}, "training")
    results = engine.run(feeds)
    engine.close()
    largest = max(float(np.linalg.norm(a)) for a in wanted.values())
    found.parameters = len(names)
    found.gradients = 0.0
    for ours, theirs in names.items():
        expected, got = wanted[theirs], results[step.gradients[ours]]
        got = got.reshape(expected.shape) if got.size == expected.size and got.ndim != expected.ndim else got
        scale = max(float(np.linalg.norm(expected)), _NEGLIGIBLE * largest)
        error = float(np.linalg.norm(got - expected)) / scale
        if not error <= found.gradients:
            found.gradients, found.worst = error, ours
    if not found.gradients < 1e-3:
        found.problems.append(f"the gradient of {found.worst} is not torch's")


def _names(model: ir.Model, wanted: dict[str, Array]) -> dict[str, str]:
    """Our weights by name, and torch's names of them."""
    initializers = model.graph.initializers
    found = {name: name for name in wanted if name in initializers}
    if not found:
        raise LookupError(f"no parameter keeps its name; the file has {list(initializers)[:5]}")
    trainable = set(trainable_initializers(model))
    return {ours: theirs for ours, theirs in found.items() if ours in trainable}


def _plan(found: Outcome, engine: CompiledEngine, shapes: dict[str, tuple[int, ...]], kind: str) -> str:
    plan = engine.plan(shapes)
    if plan is None:
        found.problems.append(f"{kind} has no static plan")
        return "no plan"
    slow = Counter(f"{row.operators.split()[0]}: {row.reason}" for row in plan.rows if row.reason)
    if slow:
        listed = "; ".join(f"{n} × {reason}" for reason, n in slow.most_common())
        found.problems.append(f"{kind} has NumPy steps: {listed}")
    return f"{len(plan.rows)} calls, {sum(slow.values())} NumPy"


def _arrays(path: Path) -> dict[str, Array]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def main() -> int:
    """Compare the networks named, or all; 1 where one is not good."""
    folder = Path(os.environ.get("ONWARD_EXPORTS") or Path(tempfile.gettempdir()) / "onward-exports")
    good = total = 0
    for network in [name for name in sys.argv[1:] if not name.startswith("-")] or NETWORKS:
        total += 1
        if (reason := export(network, folder / network)) is not None:
            print(f"{network:24} {reason}", flush=True)
            continue
        outcome = compare(network, folder / network)
        good += outcome.good
        print(outcome, flush=True)
    print(f"{good} of {total} networks agree and run by static plans without NumPy steps")
    return int(good < total)


if __name__ == "__main__":
    raise SystemExit(main())
