"""Arrays, mappings, splits, sample weights and functions of one's own, as they are typed."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
import pytest
from tests.train import networks

from onward import nn
from onward.data import Dataset, Loader
from onward.engine import Session
from onward.errors import ConfigError, DataError, InputError
from onward.graph import Builder
from onward.train import (
    L1,
    MSE,
    SGD,
    Adam,
    BinaryCrossEntropy,
    Callback,
    CrossEntropy,
    FunctionLoss,
    FunctionMetric,
    Huber,
    KLDivergence,
    Loss,
    Trainer,
)

X, Y = networks.blobs()
ROWS = np.eye(3, dtype=np.float32)[Y]
REPEATS = np.random.default_rng(0).integers(0, 4, len(Y))


def line(**options) -> Trainer:
    """y = w x, from w = 1."""
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="line"))
    x = g.input("x", ir.DataType.FLOAT, ("N", 1))
    g.output(g.MatMul(x, g.initializer("w", np.ones((1, 1), np.float32))), "y")
    return Trainer(ir.Model(g.graph, ir_version=10), "mse", SGD(0.01), **options)


def weights_after(trainer: Trainer, *data, **options) -> dict[str, np.ndarray]:
    trainer.fit(*data, **options)
    return trainer.weights()


def test_arrays_are_given_in_four_ways() -> None:
    ways = [
        ((X, Y),),
        (X, Y),
        ({"x": X}, Y),
        (Dataset({"x": X}, Y),),
    ]
    results = [weights_after(Trainer(networks.mlp(), seed=3), *way, epochs=2) for way in ways]
    for other in results[1:]:
        for name, array in results[0].items():
            np.testing.assert_array_equal(array, other[name])
    trainer = Trainer(networks.mlp())
    assert trainer.evaluate(X, Y) == trainer.evaluate((X, Y))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((X,), {}, "no targets"),
        (((X, Y), Y), {}, "targets in the tuple"),
        ((Dataset({"x": X}, Y), Y), {}, "its own targets"),
        ((Loader(Dataset({"x": X}, Y), 8), Y), {}, "a loader decides"),
        ((X, Y), {"validation_split": 1.5}, "between 0 and 1"),
        ((X, Y), {"validation_split": 0.999}, "one part empty"),
        ((X, Y), {"validation_split": 0.5, "validation_data": (X, Y)}, "not both"),
        ((X, Y), {"validation": (X, Y), "validation_data": (X, Y)}, "two names"),
        ((X, Y), {"validation_data": (X,)}, "samples are"),
        (((X, Y, np.ones(60)),), {"sample_weight": np.ones(60)}, "weights in the tuple"),
    ],
)
def test_what_contradicts_itself_is_refused(data, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(networks.mlp()).fit(*data, **options)


def test_the_last_samples_are_held_back() -> None:
    class Seen(Callback):
        def on_train_begin(self, run) -> None:
            self.first, self.held = run.loader.dataset, run.validation.dataset

    seen = Seen()
    Trainer(networks.mlp()).fit(X, Y, validation_split=0.25, callbacks=[seen])
    np.testing.assert_array_equal(seen.first.inputs["x"], X[:45])
    np.testing.assert_array_equal(seen.held.inputs["x"], X[45:])


def test_a_learning_rate_is_the_first_argument() -> None:
    assert Adam(0.01) == Adam(learning_rate=0.01)
    assert SGD(np.float32(0.5)).learning_rate == 0.5
    with pytest.raises(ConfigError, match="learning_rate must be at least 0, got 'fast'"):
        Adam("fast")


def test_a_session_takes_a_network_and_numpy_scalars() -> None:
    network = nn.Sequential([nn.Dense(2)], input_shape=(3,))
    session = Session(network)
    (name,) = (spec.name for spec in session.inputs)
    assert session.run({name: np.zeros((1, 3), np.float32)})["output"].shape == (1, 2)
    with pytest.raises(InputError, match="arrays by name"):
        session.run(np.zeros((1, 3), np.float32))
    with pytest.raises(ConfigError, match="not int"):
        Session(3)
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="scalar"))
    g.output(g.Add(g.input("a", ir.DataType.FLOAT, ()), 1.0), "b")
    scalar = Session(ir.Model(g.graph, ir_version=10))
    assert scalar.run({"a": np.float32(2)})["b"] == 3


# -- sample weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        pytest.param(CrossEntropy(), Y, id="cross entropy"),
        pytest.param(CrossEntropy(label_smoothing=0.1), Y, id="smoothed"),
        pytest.param(CrossEntropy(class_weights=(1.0, 0.5, 2.0)), Y, id="class weights"),
        pytest.param(CrossEntropy(ignore_index=2), Y, id="ignored labels"),
        pytest.param(MSE(), ROWS, id="mse"),
        pytest.param(L1(), ROWS, id="l1"),
        pytest.param(Huber(), ROWS, id="huber"),
        pytest.param(BinaryCrossEntropy(2.0), ROWS, id="binary cross entropy"),
        pytest.param(KLDivergence(), ROWS, id="kl divergence"),
    ],
)
def test_a_weight_is_how_often_the_sample_is_there(loss: Loss, targets: np.ndarray) -> None:
    repeated = np.repeat(np.arange(len(X)), REPEATS)
    by_weight = Trainer(networks.mlp(), loss, SGD(0.1), seed=1)
    by_copies = Trainer(networks.mlp(), loss, SGD(0.1), seed=1)
    by_weight.fit(X, targets, sample_weight=REPEATS, batch_size=len(X), epochs=3)
    by_copies.fit(X[repeated], targets[repeated], batch_size=len(repeated), epochs=3)
    for name, array in by_copies.weights().items():
        np.testing.assert_allclose(by_weight.weights()[name], array, rtol=1e-5, atol=1e-6)
    assert by_weight.history.rows[-1]["loss"] == pytest.approx(by_copies.history.rows[-1]["loss"], rel=1e-5)
    figures = by_weight.evaluate(X, targets, sample_weight=REPEATS, batch_size=7)
    assert figures["loss"] == pytest.approx(
        by_copies.evaluate(X[repeated], targets[repeated])["loss"], rel=1e-5
    )


def test_sequences_weigh_by_sample() -> None:
    scores = np.random.default_rng(2).normal(size=(4, 3, 5)).astype(np.float32)
    labels = np.random.default_rng(3).integers(0, 3, (4, 5))
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="positions"))
    x = g.input("x", ir.DataType.FLOAT, ("N", 3, "T"))
    g.output(g.Mul(x, g.initializer("scale", np.ones((1,), np.float32))), "y")
    trainer = Trainer(ir.Model(g.graph, ir_version=10), CrossEntropy(), trainable=["scale"])
    weights = np.array([1.0, 0.0, 2.0, 0.5])
    logp = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    each = -np.take_along_axis(logp, labels[:, None], 1)[:, 0]
    expected = (each * weights[:, None]).sum() / (weights.sum() * 5)
    found = trainer.evaluate(scores, labels, sample_weight=weights, batch_size=3)["loss"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_windows_join_by_weight() -> None:
    x = np.array([[1.0], [2], [3], [4], [5]], np.float32)
    weights = np.array([1.0, 0, 2, 1, 3])
    trainer = line(accumulate=3)
    trainer.fit(Loader(Dataset({"x": x}, 0 * x, task="regression", weights=weights), 2, shuffle=False))
    gradient = 2 * float((weights * x[:, 0] ** 2).sum() / weights.sum())
    assert float(trainer.weights()["w"][0, 0]) == pytest.approx(1 - 0.01 * gradient, rel=1e-6)


def test_the_mean_may_be_over_samples_as_in_keras() -> None:
    x = np.array([[1.0], [2]], np.float32)
    trainer = line(weighted_mean="samples")
    trainer.fit(x, 0 * x, sample_weight=np.array([1.0, 3.0]), batch_size=2)
    assert float(trainer.weights()["w"][0, 0]) == pytest.approx(1 - 0.01 * 2 * (1 + 3 * 4) / 2, rel=1e-6)
    with pytest.raises(ConfigError, match="weights or samples"):
        line(weighted_mean="sum")


def test_a_batch_that_weighs_nothing_changes_nothing() -> None:
    x = np.array([[1.0], [2], [3], [4]], np.float32)
    trainer = line()
    data = Dataset({"x": x}, 0 * x, task="regression", weights=np.array([1.0, 1, 0, 0]))
    trainer.fit(Loader(data, 2, shuffle=False))
    assert float(trainer.weights()["w"][0, 0]) == pytest.approx(1 - 0.01 * 5, rel=1e-6)


def test_weights_come_and_go_between_calls_with_the_state() -> None:
    plain = Trainer(networks.mlp(), optimizer=Adam(0.01), seed=1)
    mixed = Trainer(networks.mlp(), optimizer=Adam(0.01), seed=1)
    for keep, weights in ((False, np.ones(len(X))), (True, None)):
        plain.fit(X, Y, keep_optimizer_state=keep)
        mixed.fit(X, Y, sample_weight=weights, keep_optimizer_state=keep)
    for name, array in plain.weights().items():
        np.testing.assert_allclose(mixed.weights()[name], array, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), "numbers of samples differ"),
        (-np.ones(60), "row 0: -1.0 is below 0"),
        (np.full(60, np.nan), "row 0: nan"),
        (np.zeros(60), "every sample weighs 0"),
        (np.ones((60, 2)), r"shape \[N\]"),
        (np.array(["a"] * 60), r"shape \[N\]"),
    ],
)
def test_weights_that_are_none(weights, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Trainer(networks.mlp()).fit(X, Y, sample_weight=weights)


# -- functions ----------------------------------------------------------------------------------------------


def squares(g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
    return g.Pow(g.Sub(output, target), 2.0)


def mean_square(g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
    return g.ReduceMean(squares(g, output, target), keepdims=0)


@pytest.mark.parametrize("function", [squares, mean_square])
def test_a_function_is_a_loss(function) -> None:
    targets = ROWS
    expected = weights_after(Trainer(networks.mlp(), "mse", seed=1), X, targets)
    found = weights_after(Trainer(networks.mlp(), function, seed=1), X, targets)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-7)


def test_a_function_of_labels_is_a_loss() -> None:
    def hinge(g: Builder, scores: ir.Value, labels: ir.Value) -> ir.Value:
        right = g.GatherElements(scores, g.Unsqueeze(labels, [1]), axis=1)
        return g.Sub(g.ReduceSum(g.Relu(g.Add(g.Sub(scores, right), 1.0)), [1], keepdims=0), 1.0)

    trainer = Trainer(networks.mlp(), FunctionLoss(hinge, labels=True), Adam(0.05))
    data = Dataset({"x": X}, Y)
    before = trainer.evaluate(data)["loss"]
    trainer.fit(data, epochs=10)
    assert trainer.evaluate(data)["loss"] < 0.2 * before


def test_a_function_with_one_figure_takes_no_weights() -> None:
    with pytest.raises(ConfigError, match="one loss for a batch"):
        Trainer(networks.mlp(), mean_square).fit(X, ROWS, sample_weight=np.ones(len(X)))
    with pytest.raises(ConfigError, match="must give a graph value"):
        Trainer(networks.mlp(), lambda g, output, target: 0.0)


def test_a_function_is_a_metric_at_any_batching() -> None:
    def hit(scores, labels):
        return scores.argmax(axis=1) == labels

    def largest_error(scores, labels):
        return float(np.abs(scores).max())

    trainer = Trainer(networks.mlp(), metrics=["accuracy", hit, largest_error])
    figures = [trainer.evaluate(X, Y, batch_size=n) for n in (7, 60)]
    for found in figures:
        assert found["hit"] == pytest.approx(found["accuracy"])
        assert found["largest_error"] == pytest.approx(np.abs(trainer.predict(X)["scores"]).max())
    trainer.fit(X, Y, validation_split=0.2)
    assert {"hit", "val_hit", "largest_error", "val_largest_error"} <= set(trainer.history.rows[-1])


def test_a_metric_of_the_wrong_shape_is_refused_and_its_state_is_kept() -> None:
    with pytest.raises(DataError, match="one for each of 3 samples"):
        FunctionMetric(lambda y, t: y).update(np.zeros((3, 2)), np.zeros(3))
    for function in (lambda y, t: float(y.sum()), lambda y, t: y[:, 0]):
        metric, other = FunctionMetric(function, "m"), FunctionMetric(function, "m")
        metric.update(np.ones((3, 2)), np.zeros(3))
        other.load_state(metric.state())
        for m in (metric, other):
            m.update(2 * np.ones((1, 2)), np.zeros(1))
        assert (
            other.result()
            == metric.result()
            == pytest.approx(10.0 if "sum" in repr(function.__code__.co_names) else 1.25)
        )


def test_a_column_of_labels_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"shape \[N, 1\]; targets\[:, 0\] are the class numbers"):
        Trainer(networks.mlp()).fit(X, Y[:, None])


@pytest.mark.parametrize("options", [{"epochs": 2.5}, {"epochs": 0}, {"batch_size": 2.5}, {"batch_size": 0}])
def test_counts_are_whole_numbers(options: dict[str, float]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigError, match=f"{name} must be a whole number of at least 1, got {value}"):
        Trainer(networks.mlp()).fit(X, Y, **options)
    Trainer(networks.mlp()).fit(X, Y, epochs=np.int64(1), batch_size=np.int32(64), progress=False)


def test_an_epoch_that_has_ended_is_a_whole_line(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    Trainer(networks.mlp(), metrics=["accuracy", "f1"]).fit(
        (X, Y), validation=(X, Y), epochs=2, progress=True
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if "val_f1" in line]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    for line in lines:
        names = [part.split(" ")[0] for part in line.split("  ")[2:]]
        assert names == ["learning_rate", "loss", "accuracy", "f1", "val_loss", "val_accuracy", "val_f1"]
        assert "…" not in line


def test_a_notebook_gets_a_line_an_epoch(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    class Shell:
        kernel = object()

    class IPython:
        get_ipython = staticmethod(Shell)

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    Trainer(networks.mlp()).fit(X, Y, epochs=2)
    lines = [line.rpartition("\r")[2] for line in capsys.readouterr().out.split("\n") if line]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    monkeypatch.delitem(sys.modules, "IPython")
    Trainer(networks.mlp()).fit(X, Y, epochs=2)
    assert capsys.readouterr().out == ""
