"""Losses against their formulas in float64, and their gradients against central differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onward.autodiff import gradients
from onward.autodiff.objective import write_objective
from onward.engine import Interpreter
from onward.errors import ConfigError, OnwardError, ShapeError
from onward.graph import Builder
from onward.train import (
    L1,
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    KLDivergence,
    Loss,
    balanced_class_weights,
    loss_named,
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 4)) * 3
LABELS = np.array([0, 3, 1, 1, 2, 0])
REAL = RNG.standard_normal((6, 4))
BINARY = (RNG.random((6, 4)) > 0.5).astype(np.float64)
PROBABILITIES = RNG.dirichlet(np.ones(4), 6)
PROBABILITIES[0] = [1, 0, 0, 0]
WEIGHTS = (1.0, 0.5, 2.0, 0.25)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def smoothed(x: np.ndarray) -> float:
    target = np.eye(4)[LABELS] * 0.875 + 0.125 / 4
    return float(-(target * log_softmax(x)).sum(1).mean())


def weighted(x: np.ndarray) -> float:
    w = np.array(WEIGHTS)[LABELS]
    return float(-(w * log_softmax(x)[np.arange(6), LABELS]).sum() / w.sum())


def ignoring(x: np.ndarray) -> float:
    kept = LABELS != 1
    return float(-log_softmax(x)[np.arange(6), LABELS][kept].mean())


def binary(x: np.ndarray, w: float = 1.0) -> float:
    p = 1 / (1 + np.exp(-x))
    return float(-(w * BINARY * np.log(p) + (1 - BINARY) * np.log(1 - p)).mean())


def huber(x: np.ndarray) -> float:
    d = np.abs(x - REAL)
    return float(np.where(d <= 1.5, d * d / 2, 1.5 * (d - 0.75)).mean())


def kl(x: np.ndarray) -> float:
    p = PROBABILITIES
    terms = np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - log_softmax(x)), 0)
    return float(terms.sum(1).mean())


CASES: dict[str, tuple[Loss, np.ndarray, Callable[[np.ndarray], float]]] = {
    "cross entropy": (
        CrossEntropy(),
        LABELS,
        lambda x: float(-log_softmax(x)[np.arange(6), LABELS].mean()),
    ),
    "label smoothing": (CrossEntropy(label_smoothing=0.125), LABELS, smoothed),
    "class weights": (CrossEntropy(class_weights=WEIGHTS), LABELS, weighted),
    "ignore index": (CrossEntropy(ignore_index=1), LABELS, ignoring),
    "binary": (BinaryCrossEntropy(), BINARY, binary),
    "binary, weighted": (BinaryCrossEntropy(positive_weight=3.0), BINARY, lambda x: binary(x, 3.0)),
    "mse": (MSE(), REAL, lambda x: float(((x - REAL) ** 2).mean())),
    "l1": (L1(), REAL, lambda x: float(np.abs(x - REAL).mean())),
    "huber": (Huber(delta=1.5), REAL, huber),
    "kl": (KLDivergence(), PROBABILITIES, kl),
}


def program(loss: Loss) -> Interpreter:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="loss")
    g = Builder(graph)
    x = g.input("x", ir.DataType.DOUBLE, ("N", 4))
    value = write_objective(g, {"x": x}, {"x": loss}).loss
    (dx,) = gradients(g, {value: g.const(np.ones(()))}, [x])
    assert dx is not None
    g.output(value, "loss")
    g.output(dx, "dx")
    return Interpreter(graph)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name: str) -> None:
    loss, target, formula = CASES[name]
    found = program(loss).run({"x": X, "target": target})
    np.testing.assert_allclose(found["loss"], formula(X), rtol=1e-12)
    numeric = np.zeros_like(X)
    h = 1e-6
    for i in np.ndindex(X.shape):
        up, down = X.copy(), X.copy()
        up[i] += h
        down[i] -= h
        numeric[i] = (formula(up) - formula(down)) / (2 * h)
    np.testing.assert_allclose(found["dx"], numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_extreme_outputs_stay_finite(name: str) -> None:
    loss, target, _ = CASES[name]
    found = program(loss).run({"x": np.where(X > 0, 1e4, -1e4), "target": target})
    assert np.isfinite(found["loss"])
    assert np.isfinite(found["dx"]).all()


@pytest.mark.parametrize("label", [4, -1, -4])
def test_labels_out_of_range_are_refused(label: int) -> None:
    labels = LABELS.copy()
    labels[3] = label
    with pytest.raises(OnwardError, match=rf"label {label} at position \[3\]"):
        program(CrossEntropy()).run({"x": X, "target": labels})


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        CrossEntropy(label_smoothing=1.0)
    with pytest.raises(ConfigError, match="delta"):
        Huber(delta=0)
    with pytest.raises(ConfigError, match="unknown loss"):
        loss_named("cross-entropie")
    with pytest.raises(ConfigError, match="smoothing"):
        loss_named("cross_entropy", smoothing=0.1)
    scores = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 3]))
    with pytest.raises(ConfigError, match="4 class weights for 3 classes"):
        CrossEntropy(class_weights=WEIGHTS).target(scores)
    vector = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N"]))
    with pytest.raises(ShapeError, match=r"\[N, C"):
        CrossEntropy().target(vector)


def test_a_final_softmax_is_trained_on_its_scores() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="soft")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    assert CrossEntropy().output(g.Softmax(x, axis=-1)) is x
    assert BinaryCrossEntropy().output(g.Sigmoid(x)) is x
    relu = g.Relu(x)
    assert CrossEntropy().output(relu) is relu


def test_balanced_weights_give_each_class_the_same_total() -> None:
    weights = np.array(balanced_class_weights(np.array([0, 0, 0, 1]), 3))
    np.testing.assert_allclose(weights, [4 / 9, 4 / 3, 0])


def test_classes_that_all_weigh_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="every class weighs 0"):
        CrossEntropy(class_weights=(0.0, 0.0))
    assert CrossEntropy(class_weights=(0.0, 2.0)).class_weights == (0.0, 2.0)
