"""Training steps against torch: loss, gradients by autograd, updates by torch.optim, all in float64.

ONWARD_TORCH_PYTHON names an interpreter that has torch, onnx and numpy. It reads the inference model's file
and never sees onward: nothing but ONNX's specification says what the network is.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onward import nn
from onward.autodiff import Clip, TrainingStep, UpdateCount, training_step
from onward.engine import Session, StepSession
from onward.graph import registered
from onward.model import save, trainable_initializers
from onward.nn import zoo
from onward.passes import cast_floats
from onward.train import (
    L1,
    MSE,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    BinaryCrossEntropy,
    CrossEntropy,
    Group,
    Huber,
    KLDivergence,
    Loss,
    Optimizer,
    RMSprop,
)

SCRIPT = Path(__file__).with_name("torch_graph.py")
PYTHON = os.environ.get("ONWARD_TORCH_PYTHON", "")

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="ONWARD_TORCH_PYTHON does not name an interpreter with torch and onnx"
)


def f32(value: float) -> float:
    """An attribute as ONNX holds it."""
    return float(np.float32(value))


@dataclass(frozen=True)
class Case:
    """What both sides run: `torch` is our optimizer in torch's words."""

    network: Callable[[], nn.Network]
    losses: Mapping[str, Loss] = field(default_factory=lambda: {"output": CrossEntropy()})
    optimizer: Optimizer = SGD(learning_rate=0.0625)  # noqa: RUF009
    torch: tuple[str, dict[str, Any]] = ("SGD", {"lr": 0.0625})
    torch_groups: Mapping[str, dict[str, float]] = field(default_factory=dict)
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    clip: Clip = Clip()  # noqa: RUF009
    accumulate: int = 1
    steps: int = 1
    batch: int = 4


# learning rates are sums of few powers of two: the step takes them as float32
def _zoo(name: str, **options: Any) -> Case:
    momentum = {"lr": 0.0625, "momentum": f32(0.9)}
    return Case(
        lambda: zoo.build(name, **options),
        optimizer=SGD(learning_rate=0.0625, momentum=0.9),
        torch=("SGD", momentum),
        steps=2,
    )


NETWORKS: dict[str, Case] = {
    "alexnet": _zoo("alexnet", num_classes=5, image_size=67, width=0.1, dropout=0.0),
    "lenet5": _zoo("lenet5", image_size=12),
    "lenet5 with tanh and average pooling": _zoo(
        "lenet5", image_size=12, activation="tanh", pooling="average"
    ),
    "lstm_classifier": _zoo(
        "lstm_classifier",
        vocabulary_size=50,
        length=6,
        embedding_size=8,
        units=8,
        bidirectional=True,
        dropout=0.0,
    ),
    "mlp": _zoo("mlp", input_shape=(12,), hidden=(8, 6)),
    "mobilenet_v2": _zoo("mobilenet_v2", num_classes=5, image_size=64, width=0.25, dropout=0.0),
    "resnet18": _zoo("resnet18", num_classes=5, image_size=64, width=0.125),
    "resnet20": _zoo("resnet20", image_size=16, width=0.5),
    "resnet20 with projections": _zoo("resnet20", image_size=16, width=0.5, shortcut="B"),
    "resnet50": _zoo("resnet50", num_classes=5, image_size=64, width=0.125),
    "audiocnn": _zoo("audiocnn", bands=8, frames=12, filters=6, dropout=0.0),
    "textcnn": _zoo("textcnn", vocabulary_size=50, length=12, embedding_size=8, filters=6, dropout=0.0),
    "transformer_encoder": _zoo(
        "transformer_encoder",
        vocabulary_size=50,
        length=6,
        layers=2,
        size=16,
        heads=4,
        hidden=24,
        dropout=0.0,
    ),
    "vgg11": _zoo("vgg11", num_classes=5, image_size=32, width=0.1, hidden=24, dropout=0.0),
}
SLOW = {"mobilenet_v2", "resnet50"}


def _classifier() -> nn.Network:
    return zoo.mlp(3, input_shape=(6,), hidden=(8,), activation="tanh")


def _dense_scores() -> nn.Network:
    """A class for each pixel: scores [N, 3, 6, 6]."""
    return nn.Sequential([nn.Conv2D(4, 3, padding="same"), nn.Tanh(), nn.Conv2D(3, 1)], input_shape=(2, 6, 6))


def _two_heads() -> nn.Network:
    """A trunk used twice, and one head that reads the other's output."""
    source = nn.Input((6,))
    trunk = nn.Dense(8, "tanh")(source)
    scores = nn.Dense(3)(trunk)
    value = nn.Dense(2)(nn.Concat()(trunk, scores))
    return nn.Model(source, {"scores": scores, "value": value})


def _images() -> nn.Network:
    """The layers that no network of the zoo has."""
    return nn.Sequential(
        [
            nn.Conv2D(4, 3, padding="same", dilation=2),
            nn.GroupNorm(2),
            nn.PReLU(),
            nn.Conv2D(8, 2, strides=2, padding="same", groups=2),
            nn.LocalResponseNorm(3, alpha=0.3),
            nn.ELU(0.7),
            nn.DepthwiseConv2D(3, multiplier=2, padding=((1, 0), (0, 1))),
            nn.BatchNorm(),
            nn.SiLU(),
            nn.ConvTranspose2D(6, 3, strides=2, padding="same"),
            nn.SELU(),
            nn.AveragePool2D(3, strides=2, padding="same"),
            nn.HardSwish(),
            nn.AveragePool2D(2, strides=1, padding="same", count_include_pad=True),
            nn.LayerNorm(),
            nn.Softplus(),
            nn.MaxPool2D(2, strides=1, padding="same"),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            nn.Dense(3),
        ],
        input_shape=(2, 9, 9),
    )


MORE: dict[str, Case] = {
    "layers outside the zoo": Case(_images, steps=2),
    "two heads": Case(
        _two_heads,
        losses={"scores": CrossEntropy(), "value": MSE()},
        loss_weights={"value": 0.25},
    ),
}

LOSSES: dict[str, Case] = {
    "cross-entropy": Case(_classifier),
    "cross-entropy, label smoothing": Case(
        _classifier, losses={"output": CrossEntropy(label_smoothing=0.125)}
    ),
    "cross-entropy, class weights": Case(
        _classifier, losses={"output": CrossEntropy(class_weights=(0.5, 2.0, 1.25))}
    ),
    "cross-entropy, ignored labels": Case(
        _classifier, losses={"output": CrossEntropy(ignore_index=2)}, batch=12
    ),
    "cross-entropy, everything": Case(
        _classifier,
        losses={"output": CrossEntropy(0.125, class_weights=(0.5, 2.0, 1.25), ignore_index=2)},
        batch=12,
    ),
    "cross-entropy of pixels, everything": Case(
        _dense_scores,
        losses={"output": CrossEntropy(0.125, class_weights=(0.5, 2.0, 1.25), ignore_index=0)},
    ),
    "binary cross-entropy": Case(_classifier, losses={"output": BinaryCrossEntropy()}),
    "binary cross-entropy, weighted": Case(
        _classifier, losses={"output": BinaryCrossEntropy(positive_weight=2.5)}
    ),
    "mse": Case(_classifier, losses={"output": MSE()}),
    "l1": Case(_classifier, losses={"output": L1()}),
    "huber": Case(_classifier, losses={"output": Huber(delta=0.75)}, batch=12),
    "kl divergence": Case(_classifier, losses={"output": KLDivergence()}),
    "kl divergence of pixels": Case(_dense_scores, losses={"output": KLDivergence()}),
}

BETAS = {"lr": 0.0625, "betas": (f32(0.9), f32(0.999)), "eps": f32(1e-7)}
DECAY = f32(0.1)


def _updates(optimizer: Optimizer, kind: str, options: dict[str, Any], **more: Any) -> Case:
    return Case(_classifier, optimizer=optimizer, torch=(kind, options), **{"steps": 3, **more})


OPTIMIZERS: dict[str, Case] = {
    "sgd": _updates(SGD(learning_rate=0.0625), "SGD", {"lr": 0.0625}),
    "sgd, decay": _updates(
        SGD(learning_rate=0.0625, weight_decay=0.1), "SGD", {"lr": 0.0625, "weight_decay": DECAY}
    ),
    "momentum, decay": _updates(
        SGD(learning_rate=0.0625, momentum=0.9, weight_decay=0.1),
        "SGD",
        {"lr": 0.0625, "momentum": f32(0.9), "weight_decay": DECAY},
    ),
    "nesterov, decay": _updates(
        SGD(learning_rate=0.0625, momentum=0.9, nesterov=True, weight_decay=0.1),
        "SGD",
        {"lr": 0.0625, "momentum": f32(0.9), "nesterov": True, "weight_decay": DECAY},
    ),
    "adam": _updates(Adam(learning_rate=0.0625), "Adam", BETAS),
    "adam, decay": _updates(
        Adam(learning_rate=0.0625, weight_decay=0.1), "Adam", {**BETAS, "weight_decay": DECAY}
    ),
    "adamw": _updates(
        AdamW(learning_rate=0.0625, weight_decay=0.1), "AdamW", {**BETAS, "weight_decay": DECAY}
    ),
    "rmsprop": _updates(
        RMSprop(learning_rate=0.0625), "RMSprop", {"lr": 0.0625, "alpha": f32(0.9), "eps": f32(1e-7)}
    ),
    "rmsprop, momentum, decay": _updates(
        RMSprop(learning_rate=0.0625, momentum=0.5, weight_decay=0.1),
        "RMSprop",
        {"lr": 0.0625, "alpha": f32(0.9), "eps": f32(1e-7), "momentum": 0.5, "weight_decay": DECAY},
    ),
    "adagrad, decay": _updates(
        Adagrad(learning_rate=0.0625, initial_accumulator=0.25, weight_decay=0.1),
        "Adagrad",
        {"lr": 0.0625, "eps": f32(1e-7), "initial_accumulator_value": 0.25, "weight_decay": DECAY},
    ),
    "groups": _updates(
        Adam(
            learning_rate=0.0625,
            weight_decay=0.1,
            groups=(Group("*.bias", weight_decay=0.0), Group("dense_2.*", learning_rate=0.5)),
        ),
        "Adam",
        {**BETAS, "weight_decay": DECAY},
        torch_groups={
            "dense_1.bias": {"weight_decay": 0.0},
            "dense_2.weight": {"lr": 0.03125},
            "dense_2.bias": {"weight_decay": 0.0},
        },
    ),
    "clipped by norm": _updates(SGD(learning_rate=0.0625), "SGD", {"lr": 0.0625}, clip=Clip(norm=0.25)),
    "clipped by value": _updates(SGD(learning_rate=0.0625), "SGD", {"lr": 0.0625}, clip=Clip(value=0.03125)),
    "clipped both ways, accumulated": _updates(
        Adam(learning_rate=0.0625),
        "Adam",
        BETAS,
        clip=Clip(value=0.0625, norm=0.125),
        accumulate=2,
        steps=6,
    ),
}

CASES = {
    f"{kind}: {name}": case
    for kind, cases in (
        ("network", NETWORKS),
        ("network", MORE),
        ("loss", LOSSES),
        ("optimizer", OPTIMIZERS),
    )
    for name, case in cases.items()
}
LOSS_NAMES = {
    CrossEntropy: "cross_entropy",
    BinaryCrossEntropy: "binary_cross_entropy",
    MSE: "mse",
    L1: "l1",
    Huber: "huber",
    KLDivergence: "kl_divergence",
}


def _target(rng: np.random.Generator, loss: Loss, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(loss, CrossEntropy):
        return rng.integers(0, shape[1], (shape[0], *shape[2:]))
    if isinstance(loss, BinaryCrossEntropy):
        return rng.random(shape)
    if isinstance(loss, KLDivergence):
        # a class without mass: its term is 0, not 0 · log 0
        mass = rng.random(shape) * (np.arange(shape[1]).reshape(-1, *[1] * (len(shape) - 2)) > 0)
        return mass / mass.sum(1, keepdims=True)
    return rng.standard_normal(shape) * 2


def _batches(model: ir.Model, case: Case) -> list[dict[str, np.ndarray]]:
    """For each step the inputs by name, and targets as `target:<output>`; float64."""
    session = Session(model)
    batches = []
    for step in range(case.steps):
        rng = np.random.default_rng(step)
        inputs: dict[str, np.ndarray] = {}
        for spec in session.inputs:
            shape = (case.batch, *(d for d in (spec.shape or ())[1:] if isinstance(d, int)))
            whole = spec.dtype.kind == "i"
            inputs[spec.name] = rng.integers(0, 50, shape) if whole else rng.standard_normal(shape)
        outputs = session.run({s.name: inputs[s.name].astype(s.dtype) for s in session.inputs})
        targets = {
            f"target:{name}": _target(rng, loss, outputs[name].shape) for name, loss in case.losses.items()
        }
        batches.append({**inputs, **targets})
    return batches


def _options(loss: Loss) -> dict[str, Any]:
    return {key: value for key, value in vars(loss).items() if value is not None}


def _job(model: ir.Model, case: Case) -> dict[str, Any]:
    return {
        "losses": {
            name: (LOSS_NAMES[type(loss)], _options(loss), case.loss_weights.get(name, 1.0))
            for name, loss in case.losses.items()
        },
        "optimizer": case.torch,
        "groups": dict(case.torch_groups),
        "parameters": trainable_initializers(model),
        "clip_norm": case.clip.norm,
        "clip_value": case.clip.value,
        "accumulate": case.accumulate,
        "steps": case.steps,
    }


@dataclass(frozen=True)
class Prepared:
    model: ir.Model
    batches: list[dict[str, np.ndarray]]
    answers: Path


@pytest.fixture(scope="module")
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    """Every case that was selected, answered by one process: importing torch takes seconds."""
    folder = tmp_path_factory.mktemp("torch")
    chosen = dict.fromkeys(
        item.callspec.params["name"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    )
    jobs: dict[str, Any] = {}
    ready: dict[str, Prepared] = {}
    for number, name in enumerate(chosen):
        case, key = CASES[name], str(number)
        model = case.network().model
        if any(("", node.op_type) not in registered() for node in model.graph):
            continue
        save(model, folder / f"{key}.onnx")
        ready[name] = Prepared(model, _batches(model, case), folder / f"{key}.npz")
        arrays = {f"{i}/{n}": a for i, batch in enumerate(ready[name].batches) for n, a in batch.items()}
        np.savez(folder / f"{key}.batches.npz", **arrays)
        jobs[key] = {"model": f"{key}.onnx", **_job(model, case)}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [PYTHON, str(SCRIPT), str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ready


def _session(model: ir.Model, case: Case) -> tuple[TrainingStep, StepSession]:
    # first the type, then the step: constants of gradient rules are then float64 from the start
    model = cast_floats(model, ir.DataType.DOUBLE)
    step = training_step(
        model,
        case.losses,
        case.optimizer,
        trainable_initializers(model),
        loss_weights=case.loss_weights,
        gradient_transforms=[case.clip],
        accumulate=case.accumulate > 1,
        expose_gradients=True,
    )
    return step, StepSession(step.model, step.bindings)


def _agree(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype == np.float64, what
    scale = np.abs(theirs).max(initial=0.0)
    # a bias before batch normalization has gradient 0: there rounding is all that either side has
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9 * scale + 1e-13, err_msg=what)


def _marks(name: str) -> Any:
    return pytest.mark.slow if name.partition(": ")[2] in SLOW else ()


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in CASES])
def test_the_training_step_is_torchs(prepared: dict[str, Prepared], name: str) -> None:
    case, given = CASES[name], prepared[name]
    step, session = _session(given.model, case)
    answers = np.load(given.answers)
    compared, updates = 0, UpdateCount()
    for number, batch in enumerate(given.batches):
        feeds = {key: array for key, array in batch.items() if not key.startswith("target:")}
        feeds |= {target: batch[f"target:{output}"] for output, target in step.targets.items()}
        feeds |= {
            step.learning_rate: np.array(case.optimizer.learning_rate, np.float32),
            step.step: np.array(number),
        }
        ends = (number + 1) % case.accumulate == 0
        if step.update is not None:
            feeds[step.update] = updates.number(ends)
        results = session.run(feeds)
        updates.add(sum(float(results[weight]) for weight in step.totals.values()), ends)
        found = {"loss": results[step.loss]}
        found |= {f"gradient/{key}": results[output] for key, output in step.gradients.items()}
        found |= {f"parameter/{key}": session.state[key] for key in step.parameters}
        found |= {f"statistic/{key}": session.state[key] for key in step.statistics}
        for what, array in found.items():
            _agree(f"step {number}, {what}", array, answers[f"{number}/{what}"])
            compared += 1
    assert compared == len(answers.files)


def test_every_network_loss_and_optimizer_is_here() -> None:
    assert set(zoo.names()) <= set(NETWORKS)
    assert {type(loss) for case in LOSSES.values() for loss in case.losses.values()} == set(LOSS_NAMES)
    assert {type(case.optimizer) for case in OPTIMIZERS.values()} == {SGD, Adam, AdamW, RMSprop, Adagrad}
