"""Optimizers against plain NumPy transcriptions of their papers' algorithms, over several steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tests.train import networks

from onward.autodiff import Clip, training_step
from onward.engine import StepSession
from onward.errors import ConfigError
from onward.passes import cast_floats, expand_onward
from onward.train import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    CrossEntropy,
    Group,
    Optimizer,
    RMSprop,
    optimizer_named,
)


def f32(value: float) -> float:
    """An attribute as ONNX holds it."""
    return float(np.float32(value))


Reference = Callable[[np.ndarray, Iterator[np.ndarray], float], np.ndarray]


def sgd(momentum: float = 0, nesterov: bool = False, decay: float = 0) -> Reference:
    momentum, decay = f32(momentum), f32(decay)

    def run(p: np.ndarray, grads: Iterator[np.ndarray], lr: float) -> np.ndarray:
        v = np.zeros_like(p)
        for raw in grads:
            d = raw + decay * p
            v = momentum * v + d
            p = p - lr * (d + momentum * v if nesterov else v)
        return p

    return run


def adam(decay: float = 0, decoupled: bool = False) -> Reference:
    decay, b1, b2, epsilon = f32(decay), f32(0.9), f32(0.999), f32(1e-7)

    def run(p: np.ndarray, grads: Iterator[np.ndarray], lr: float) -> np.ndarray:
        m, v = np.zeros_like(p), np.zeros_like(p)
        for t, raw in enumerate(grads, 1):
            d = raw if decoupled else raw + decay * p
            if decoupled:
                p = p - lr * decay * p
            m = b1 * m + (1 - b1) * d
            v = b2 * v + (1 - b2) * d * d
            p = p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon)
        return p

    return run


def rmsprop(p: np.ndarray, grads: Iterator[np.ndarray], lr: float) -> np.ndarray:
    s, v, rho = np.zeros_like(p), np.zeros_like(p), f32(0.9)
    for d in grads:
        s = rho * s + (1 - rho) * d * d
        v = 0.5 * v + d / (np.sqrt(s) + f32(1e-7))
        p = p - lr * v
    return p


def adagrad(p: np.ndarray, grads: Iterator[np.ndarray], lr: float) -> np.ndarray:
    s = np.full_like(p, f32(0.1))
    for d in grads:
        s = s + d * d
        p = p - lr * d / (np.sqrt(s) + f32(1e-7))
    return p


CASES: dict[str, tuple[Optimizer, Reference]] = {
    "sgd": (SGD(learning_rate=0.1), sgd()),
    "sgd, decay": (SGD(learning_rate=0.1, weight_decay=0.01), sgd(decay=0.01)),
    "momentum": (SGD(learning_rate=0.1, momentum=0.9), sgd(0.9)),
    "nesterov, decay": (
        SGD(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        sgd(0.9, True, 0.01),
    ),
    "adam": (Adam(learning_rate=0.01), adam()),
    "adam, decay": (Adam(learning_rate=0.01, weight_decay=0.1), adam(0.1)),
    "adamw": (AdamW(learning_rate=0.01, weight_decay=0.1), adam(0.1, True)),
    "rmsprop": (RMSprop(learning_rate=0.01, momentum=0.5), rmsprop),
    "adagrad": (Adagrad(learning_rate=0.1, initial_accumulator=0.1), adagrad),
}

PARAMETERS = ["hidden.weight", "hidden.bias", "out.weight", "out.bias"]


def session(optimizer: Optimizer, *, body: bool = False, **options) -> tuple[StepSession, dict[str, str]]:
    step = training_step(
        networks.mlp(), {"scores": CrossEntropy()}, optimizer, PARAMETERS, expose_gradients=True, **options
    )
    model = expand_onward(step.model) if body else step.model
    import onnx_ir as ir

    return StepSession(cast_floats(model, ir.DataType.DOUBLE), step.bindings), dict(step.gradients)


def feeds(k: int, lr: float) -> dict[str, np.ndarray]:
    x, y = networks.blobs(12, seed=k)
    return {
        "x": x.astype(np.float64),
        "target": y,
        "learning_rate": np.array(lr),
        "step": np.array(k),
    }


@pytest.mark.parametrize("body", [False, True], ids=["kernel", "body"])
@pytest.mark.parametrize("name", CASES)
def test_updates_follow_the_algorithm(name: str, body: bool) -> None:
    optimizer, reference = CASES[name]
    run, outputs = session(optimizer, body=body)
    start = {p: run.state[p].copy() for p in PARAMETERS}
    grads: dict[str, list[np.ndarray]] = {p: [] for p in PARAMETERS}
    for k in range(4):
        results = run.run(feeds(k, optimizer.learning_rate))
        for p in PARAMETERS:
            grads[p].append(results[outputs[p]])
    for p in PARAMETERS:
        expected = reference(start[p], iter(grads[p]), optimizer.learning_rate)
        np.testing.assert_allclose(run.state[p], expected, rtol=1e-9, atol=1e-12)


def test_groups_have_their_own_rate_and_decay() -> None:
    groups = (Group("*.bias", weight_decay=0.0), Group("out.*", learning_rate=0.1))
    run, outputs = session(SGD(learning_rate=0.5, weight_decay=0.2, groups=groups))
    start = {p: run.state[p].copy() for p in PARAMETERS}
    grads = run.run(feeds(0, 0.5))
    for p, rate, decay in [
        ("hidden.weight", 0.5, 0.2),
        ("hidden.bias", 0.5, 0.0),
        ("out.weight", 0.05, 0.2),
        ("out.bias", 0.5, 0.0),
    ]:
        expected = start[p] - rate * (grads[outputs[p]] + decay * start[p])
        np.testing.assert_allclose(run.state[p], expected, rtol=1e-6)


def test_clipping_by_norm_scales_all_gradients_together() -> None:
    run, outputs = session(SGD(learning_rate=1.0), gradient_transforms=[Clip(norm=0.1)])
    start = {p: run.state[p].copy() for p in PARAMETERS}
    grads = run.run(feeds(0, 1.0))
    norm = np.sqrt(sum((grads[outputs[p]] ** 2).sum() for p in PARAMETERS))
    assert norm > 0.1
    for p in PARAMETERS:
        np.testing.assert_allclose(run.state[p], start[p] - 0.1 / norm * grads[outputs[p]], rtol=1e-4)


def test_clipping_by_value_bounds_each_element() -> None:
    run, outputs = session(SGD(learning_rate=1.0), gradient_transforms=[Clip(value=0.02)])
    start = {p: run.state[p].copy() for p in PARAMETERS}
    grads = run.run(feeds(0, 1.0))
    assert max(np.abs(grads[outputs[p]]).max() for p in PARAMETERS) > 0.02
    for p in PARAMETERS:
        np.testing.assert_allclose(
            run.state[p], start[p] - np.clip(grads[outputs[p]], -0.02, 0.02), rtol=1e-6, atol=1e-9
        )


def test_accumulated_steps_equal_one_step_of_the_whole_batch() -> None:
    optimizer = Adam(learning_rate=0.05)
    whole, _ = session(optimizer)
    parts, _ = session(optimizer, accumulate=True)
    for update in range(2):
        batches = [feeds(update * 3 + k, 0.05) for k in range(3)]
        joint = {
            **batches[0],
            "x": np.concatenate([b["x"] for b in batches]),
            "target": np.concatenate([b["target"] for b in batches]),
            "step": np.array(update),
        }
        whole.run(joint)
        for k, batch in enumerate(batches):
            before = parts.state["out.bias"].copy()
            parts.run(
                {**batch, "step": np.array(update * 3 + k), "update": np.array(update + 1 if k == 2 else 0)}
            )
            if k < 2:
                np.testing.assert_array_equal(parts.state["out.bias"], before)
        for p in PARAMETERS:
            np.testing.assert_allclose(parts.state[p], whole.state[p], rtol=1e-6, atol=1e-9)


def test_options_are_checked() -> None:
    for make in (
        lambda: SGD(learning_rate=-1),
        lambda: SGD(momentum=1.0),
        lambda: SGD(nesterov=True),
        lambda: Adam(beta1=1.5),
        lambda: Clip(norm=0),
        lambda: optimizer_named("adamant"),
        lambda: optimizer_named("adam", beta3=1),
    ):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(ConfigError, match="nothing is trainable"):
        training_step(networks.mlp(), {"scores": CrossEntropy()}, SGD(), [])
    with pytest.raises(ConfigError, match="out\\.weigth"):
        training_step(networks.mlp(), {"scores": CrossEntropy()}, SGD(), ["out.weigth"])
    with pytest.raises(ConfigError, match="outputs are scores"):
        training_step(networks.mlp(), {"score": CrossEntropy()}, SGD(), ["out.weight"])
