"""Fit, evaluate, predict, and what a user can get wrong."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.train import networks

from onward import nn
from onward.data import Dataset, Loader
from onward.engine import Session
from onward.errors import ConfigError, DataError, InputError, TrainingError, UnsupportedError
from onward.graph import Builder
from onward.train import (
    MSE,
    SGD,
    Adam,
    Callback,
    Cosine,
    CrossEntropy,
    CSVLog,
    EarlyStopping,
    Exponential,
    ReduceOnPlateau,
    Step,
    TensorBoardLog,
    Trainer,
    schedule_named,
)
from onward.train.schedules import Progress


class Rates(Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_step_end(self, run) -> None:
        self.rates.append(run.last["learning_rate"])


def fitted(**options) -> Trainer:
    trainer = Trainer(networks.mlp(), optimizer=Adam(learning_rate=0.05), metrics=["accuracy"], **options)
    trainer.fit(networks.blobs(), epochs=15, batch_size=16)
    return trainer


def test_fit_learns_and_evaluate_and_predict_agree() -> None:
    trainer = fitted()
    x, y = networks.blobs(seed=1)
    figures = trainer.evaluate((x, y))
    assert figures["accuracy"] > 0.95
    scores = trainer.predict(x, batch_size=7)["scores"]
    assert scores.shape == (60, 3)
    assert (scores.argmax(1) == y).mean() == pytest.approx(figures["accuracy"])
    logp = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    assert figures["loss"] == pytest.approx(-logp[np.arange(60), y].mean(), rel=1e-5)
    assert trainer.history["loss"][-1] < trainer.history["loss"][0] / 3


def test_the_model_has_the_trained_weights_and_is_a_copy() -> None:
    trainer = fitted()
    model = trainer.model
    for name, array in trainer.weights().items():
        held = model.graph.initializers[name].const_value
        assert held is not None
        np.testing.assert_array_equal(held.numpy(), array)
    before = {n: a.copy() for n, a in trainer.weights().items()}
    trainer.fit(networks.blobs(), epochs=1)
    np.testing.assert_array_equal(
        model.graph.initializers["out.bias"].const_value.numpy(), before["out.bias"]
    )


def test_equal_runs_are_equal_and_other_seeds_are_not() -> None:
    def run(seed: int) -> list[bytes]:
        trainer = Trainer(networks.mlp(dropout=0.5), optimizer=SGD(learning_rate=0.1), seed=seed)
        trainer.fit(networks.blobs(), epochs=2, batch_size=16)
        return [a.tobytes() for a in trainer.weights().values()]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_frozen_parameters_stay_and_frozen_batch_norm_keeps_its_statistics() -> None:
    data = Dataset({"image": np.random.default_rng(0).random((12, 1, 6, 6), np.float32)}, np.arange(12) % 3)
    trainer = Trainer(networks.norm_net(), optimizer=SGD(learning_rate=0.1), freeze=["conv.*", "bn.*"])
    assert trainer.step.parameters == ("head.weight", "head.bias")
    assert trainer.step.statistics == ()
    start = networks.norm_net().graph.initializers
    trainer.fit(data, epochs=2)
    trained = trainer.model.graph.initializers
    for name, value in start.items():
        same = np.array_equal(value.const_value.numpy(), trained[name].const_value.numpy())
        assert same == (not name.startswith("head.")), name


def test_running_statistics_follow_the_data() -> None:
    rng = np.random.default_rng(0)
    images = (rng.standard_normal((64, 1, 6, 6)) * 2 + 5).astype(np.float32)
    trainer = Trainer(networks.norm_net(), optimizer=SGD(learning_rate=0.0))
    trainer.fit(Dataset({"image": images}, np.arange(64) % 3), epochs=60, batch_size=64)
    model = trainer.model
    conv = next(node for node in model.graph if node.op_type == "Conv")
    model.graph.outputs.append(conv.outputs[0])
    out = Session(model).run({"image": images})[conv.outputs[0].name]
    weights = trainer.weights()
    np.testing.assert_allclose(weights["bn.running_mean"], out.mean((0, 2, 3)), rtol=0.01)
    np.testing.assert_allclose(weights["bn.running_var"], out.var((0, 2, 3)), rtol=0.01)


def test_two_outputs_two_losses() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="two")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    rng = np.random.default_rng(0)
    w = g.initializer("w", rng.standard_normal((4, 3)).astype(np.float32))
    v = g.initializer("v", rng.standard_normal((4, 1)).astype(np.float32))
    g.output(g.MatMul(x, w), "scores")
    g.output(g.MatMul(x, v), "value")
    trainer = Trainer(
        ir.Model(graph, ir_version=10),
        {"scores": CrossEntropy(), "value": MSE()},
        Adam(learning_rate=0.05),
        loss_weights={"value": 0.5},
    )
    features, labels = networks.blobs()
    values = (features @ np.array([1, -1, 0.5, 2], np.float32))[:, None]
    data = Dataset({"x": features, "value.target": values}, labels)
    history = trainer.fit(data, epochs=200, batch_size=20)
    assert history["loss"][-1] < history["loss"][0] / 10
    np.testing.assert_allclose(trainer.weights()["v"].ravel(), [1, -1, 0.5, 2], atol=0.2)


def test_early_stopping_restores_the_best_weights() -> None:
    class Remember(Callback):
        def __init__(self) -> None:
            self.weights: list[bytes] = []

        def on_epoch_end(self, run) -> None:
            self.weights.append(run.session.state["out.bias"].tobytes())

    memory, stopping = Remember(), EarlyStopping("val_loss", patience=2)
    trainer = Trainer(networks.mlp(), optimizer=SGD(learning_rate=3.0))
    history = trainer.fit(
        networks.blobs(),
        validation=networks.blobs(30, seed=9),
        epochs=50,
        batch_size=8,
        callbacks=[memory, stopping],
    )
    best = int(np.argmin(history["val_loss"]))
    assert stopping.best_epoch == best + 1
    assert len(history) == best + 1 + 2 < 50
    assert trainer.weights()["out.bias"].tobytes() == memory.weights[best]
    assert "val_loss" in trainer.stopped


def test_logs(tmp_path: Path) -> None:
    trainer = Trainer(networks.mlp(), optimizer=SGD(learning_rate=0.1), metrics=["accuracy"])
    history = trainer.fit(
        networks.blobs(),
        epochs=3,
        callbacks=[CSVLog(tmp_path / "log.csv"), TensorBoardLog(tmp_path / "tb", every=1)],
    )
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["loss"]) for r in rows] == history["loss"]
    assert set(rows[0]) == {"epoch", "learning_rate", "loss", "accuracy"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    logged = [e.value for e in events.Scalars("epoch/loss")]
    np.testing.assert_allclose(logged, history["loss"], rtol=1e-6)
    assert len(events.Scalars("step/loss")) == 6


def test_schedules() -> None:
    def factor(schedule, update, epoch=0, state=None):
        return schedule.factor(Progress(update, 100, epoch), {} if state is None else state)

    assert [factor(Step(every=2, gamma=0.5), 0, e) for e in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    assert factor(Exponential(gamma=0.9), 0, 3) == pytest.approx(0.729)
    cosine = Cosine(warmup=10, minimum=0.1)
    assert factor(cosine, 0) == pytest.approx(0.1)
    assert factor(cosine, 10) == pytest.approx(1.0)
    assert factor(cosine, 55) == pytest.approx(0.55)
    assert factor(cosine, 100) == pytest.approx(0.1)
    plateau, state = ReduceOnPlateau(patience=1, gamma=0.5, minimum=0.3), {}
    for loss, expected in [(1.0, 1), (0.5, 1), (0.6, 0.5), (0.4, 0.5), (0.6, 0.3), (0.6, 0.3)]:
        plateau.observe(loss, state)
        assert factor(plateau, 0, state=state) == expected
    with pytest.raises(ConfigError, match="unknown schedule"):
        schedule_named("linear")


def test_the_schedule_drives_the_rate() -> None:
    rates = Rates()
    Trainer(networks.mlp(), optimizer=SGD(learning_rate=0.2), schedule=Step(every=1, gamma=0.5)).fit(
        networks.blobs(), epochs=3, batch_size=30, callbacks=[rates]
    )
    assert rates.rates == [0.2, 0.2, 0.1, 0.1, 0.05, 0.05]


def test_last_partial_batch_counts_by_its_samples() -> None:
    x, y = networks.blobs(50)
    trainer = Trainer(networks.mlp(), optimizer=SGD(learning_rate=0.0))
    history = trainer.fit((x, y), epochs=1, batch_size=16)
    assert history["loss"][0] == pytest.approx(
        float(trainer.evaluate((x, y), batch_size=7)["loss"]), rel=1e-5
    )


def test_nan_loss_stops_with_an_error() -> None:
    trainer = Trainer(networks.mlp(), optimizer=SGD(learning_rate=1e30))
    with pytest.raises(TrainingError, match=r"loss became (nan|inf) in epoch \d"):
        trainer.fit(networks.blobs(), epochs=50, batch_size=16)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((np.zeros((4, 4), np.float32), np.array([0, 1, 2, 3])), DataError, "label 3 is out of range"),
        ((np.full((4, 4), math.nan, np.float32), np.zeros(4, int)), DataError, "nan"),
        ((np.zeros((0, 4), np.float32), np.zeros(0, int)), DataError, "empty"),
        ((np.zeros((4, 4), np.float32), np.zeros(3, int)), DataError, "numbers of samples differ"),
        ((np.zeros((4, 5), np.float32), np.zeros(4, int)), InputError, r"expected x: float32\[N, 4\]"),
        ((np.zeros((4, 4), np.float32), np.zeros(4)), DataError, "class labels must be integers"),
    ],
)
def test_bad_data_gets_one_clear_error(data, error, message) -> None:
    trainer = Trainer(networks.mlp(), optimizer=SGD())
    before = trainer.weights()["out.bias"].copy()
    with pytest.raises(error, match=message):
        trainer.fit(data, epochs=1)
    np.testing.assert_array_equal(trainer.weights()["out.bias"], before)


def test_options_that_do_not_fit_are_refused() -> None:
    trainer = Trainer(networks.mlp(), optimizer=SGD())
    with pytest.raises(ConfigError, match="epochs"):
        trainer.fit(networks.blobs(), epochs=0)
    with pytest.raises(ConfigError, match="no validation data"):
        trainer.fit(networks.blobs(), epochs=1, callbacks=[EarlyStopping()])
    features = {"a": np.zeros((4, 4), np.float32), "b": np.zeros((4, 4), np.float32)}
    with pytest.raises(ConfigError, match="the model takes x"):
        trainer.fit(Dataset(features, np.zeros(4, int)), epochs=1)
    with pytest.raises(ConfigError, match="has no targets"):
        trainer.fit(Loader(Dataset({"x": np.zeros((4, 4), np.float32)}), 2), epochs=1)
    regression = Dataset({"x": np.zeros((4, 4), np.float32)}, np.zeros(4), task="regression")
    with pytest.raises(ConfigError, match="for regression"):
        trainer.fit(regression, epochs=1)
    with pytest.raises(ConfigError, match="path"):
        Trainer(42)
    with pytest.raises(ConfigError):
        Trainer(networks.mlp(), trainable=["nothing.*"])


def test_a_missing_gradient_names_every_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from onward.ops.tanh import Tanh

    monkeypatch.delattr(Tanh, "gradient")
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="hard")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    w = g.initializer("w", np.ones((4, 3), np.float32))
    y = g.Tanh(g.MatMul(x, w), name="first")
    g.output(g.Tanh(y, name="second"), "scores")
    with pytest.raises(UnsupportedError, match=r"(?s)'first'.*Tanh.*'second'"):
        Trainer(ir.Model(graph, ir_version=10))


def test_parameters_that_the_loss_does_not_reach_are_left_out() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="heads")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    for name in ("scores", "other"):
        w = g.initializer(f"{name}.weight", np.ones((4, 3), np.float32))
        g.output(g.MatMul(x, w), name)
    assert Trainer(ir.Model(graph, ir_version=10)).step.parameters == ("scores.weight",)
    with pytest.raises(ConfigError, match=r"does not depend on other\.weight"):
        Trainer(ir.Model(graph, ir_version=10), trainable=["*.weight"])


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "input 'x' is missing"),
        ({"y": np.zeros((2, 4), np.float32)}, "input 'x' is missing"),
        ([[1.0, 2.0], [3.0]], "input 'x': not an array"),
        (np.float32(1), "got shape \\[\\]"),
    ],
)
def test_predict_refuses_what_is_no_batch(inputs: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Trainer(networks.mlp()).predict(inputs)


def test_engines_and_threads_are_checked() -> None:
    with pytest.raises(ConfigError, match="engine 'gpu': choose auto"):
        Trainer(networks.mlp(), engine="gpu")
    with pytest.raises(ConfigError, match="threads must be at least 1"):
        Trainer(networks.mlp(), threads=0)


def test_a_trainer_runs_the_engine_that_it_is_given(monkeypatch) -> None:
    from onward.engine import Interpreter

    ran = []
    run = Interpreter.run
    monkeypatch.setattr(Interpreter, "run", lambda self, *a, **k: ran.append(self) or run(self, *a, **k))
    x, y = networks.blobs()
    for engine, count in (("compiled", 0), ("interpreter", 3)):
        trainer = Trainer(networks.mlp(), engine=engine)
        trainer.fit((x, y), batch_size=len(x))
        trainer.evaluate((x, y))
        trainer.predict(x)
        assert len(ran) == count


@pytest.mark.parametrize("kind", ["Dense", "Conv2D", "ConvTranspose2D"])
def test_a_bias_that_a_batch_normalisation_takes_away_stays(kind: str) -> None:
    """Rounding errors are no gradient: Adam would make steps of them. Other parameters learn."""
    layers: list[nn.Layer] = [nn.Dense(6) if kind == "Dense" else getattr(nn, kind)(6, 3)]
    layers += [nn.BatchNorm(), nn.ReLU(), *([] if kind == "Dense" else [nn.GlobalAveragePool()]), nn.Dense(3)]
    shape = (5,) if kind == "Dense" else (2, 7, 7)
    network = nn.Sequential(layers, input_shape=shape)
    generator = np.random.default_rng(0)
    x = generator.normal(3, 1, (64, *shape)).astype(np.float32)
    trainer = Trainer(network, "cross_entropy", Adam(0.01))
    before = {name: weight.copy() for name, weight in trainer.weights().items()}
    trainer.fit(x, generator.integers(0, 3, 64), epochs=3, batch_size=16, progress=False)
    after = trainer.weights()
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert len(still) == 1
    assert before[still[0]].shape == (6,)
    assert "bias" in still[0]
