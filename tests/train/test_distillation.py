"""The loss is the formula's, the teacher stays as it is, and the student is exported alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.train import networks

from onward.engine import Session
from onward.errors import ConfigError
from onward.graph import Builder
from onward.train import MSE, SGD, Adam, CrossEntropy, Distillation, Trainer


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def teacher() -> Any:
    return networks.mlp(hidden=16, dropout=0.5, seed=7)


def scores(model: Any, x: np.ndarray) -> np.ndarray:
    return Session(model, engine="interpreter").run({"x": x})["scores"]


def both(x: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy's log-probabilities of the student, and KL at the temperature."""
    student, wanted = scores(networks.mlp(), x), scores(teacher(), x)
    log_p, log_q = log_softmax(wanted / t), log_softmax(student / t)
    return log_softmax(student), (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
@pytest.mark.parametrize(
    ("loss", "alpha", "temperature"),
    [
        (CrossEntropy(), 0.3, 4.0),
        (CrossEntropy(), 1.0, 2.0),
        (CrossEntropy(), 0.0, 1.0),
        (CrossEntropy(ignore_index=2, class_weights=(1.0, 3.0, 0.5)), 0.6, 2.0),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_that_of_labels_and_teacher(
    loss: CrossEntropy, alpha: float, temperature: float, weighted: bool, engine: str
) -> None:
    x, y = networks.blobs()
    rule = Distillation(teacher=teacher(), alpha=alpha, temperature=temperature)
    trainer = Trainer(networks.mlp(), loss, SGD(0.0), distillation=rule, engine=engine)
    of_sample = np.linspace(0.5, 2, len(x)).astype(np.float32) if weighted else np.ones(len(x))
    history = trainer.fit(
        x, y, batch_size=60, progress=False, **({"sample_weight": of_sample} if weighted else {})
    )
    log_q, divergence = both(x, temperature)
    w = np.array(loss.class_weights or (1.0, 1.0, 1.0))[y] * of_sample
    w = np.where(y == loss.ignore_index, 0, w) if loss.ignore_index is not None else w
    each = alpha * -log_q[np.arange(len(y)), y] + (1 - alpha) * temperature**2 * divergence
    assert history.rows[-1]["loss"] == pytest.approx((w * each).sum() / w.sum(), rel=1e-5)
    hard = (w * -log_q[np.arange(len(y)), y]).sum() / w.sum()
    found = trainer.evaluate(x, y, sample_weight=of_sample if weighted else None)
    assert found["loss"] == pytest.approx(hard, rel=1e-5)


def test_the_student_comes_to_score_like_the_teacher_and_is_alone_in_its_model() -> None:
    x, y = networks.blobs(120)
    wanted = scores(teacher(), x)
    rule = Distillation(teacher=teacher(), alpha=0.0, temperature=1.0)
    trainer = Trainer(networks.mlp(), optimizer=Adam(0.03), distillation=rule)
    trainer.fit(x, y, epochs=60, progress=False)
    found = np.exp(log_softmax(trainer.predict(x)["scores"]))
    np.testing.assert_allclose(found, np.exp(log_softmax(wanted)), atol=0.1)
    assert set(trainer.model.graph.initializers) == set(networks.mlp().graph.initializers)
    np.testing.assert_array_equal(scores(teacher(), x), wanted)


def test_a_teacher_that_ends_in_softmax_is_asked_for_its_scores() -> None:
    x, y = networks.blobs()
    ending = teacher()
    g = Builder(ending.graph)
    (value,) = ending.graph.outputs
    ending.graph.outputs.clear()
    value.name = "inner"
    g.output(g.Softmax(value, axis=-1), "probabilities")
    losses = [
        Trainer(networks.mlp(), optimizer=SGD(0.0), distillation=Distillation(teacher=each, temperature=3.0))
        .fit(x, y, batch_size=60, progress=False)
        .rows[-1]["loss"]
        for each in (teacher(), ending)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"alpha must be in \[0, 1\]"):
        Distillation(teacher=teacher(), alpha=2)
    with pytest.raises(ConfigError, match="temperature must be above 0"):
        Distillation(teacher=teacher(), temperature=0)
    for wrong, text in [
        (Distillation(teacher=networks.mlp(classes=5)), "have to score the same classes"),
        (Distillation(teacher=networks.mlp(features=6)), "the student's input 'x' is float"),
        (Distillation(teacher=teacher(), output="none"), "no output 'none'; it has scores"),
    ]:
        with pytest.raises(ConfigError, match=text):
            Trainer(networks.mlp(), distillation=wrong)
    with pytest.raises(ConfigError, match="needs cross-entropy over classes as the loss, not MSE"):
        Trainer(networks.mlp(), MSE(), distillation=Distillation(teacher=teacher()))
