"""Means over the samples that count: at any batching, with accumulated batches, with labels left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.train import networks

from onward import verify
from onward.autodiff import Weighted
from onward.data import Dataset, Loader
from onward.errors import ConfigError, DataError
from onward.graph import Builder
from onward.train import (
    MSE,
    SGD,
    Adam,
    Callback,
    Checkpoints,
    Clip,
    CrossEntropy,
    Loss,
    Trainer,
)

FLOAT = ir.DataType.FLOAT
ENGINES = pytest.mark.parametrize("engine", ["interpreter", "compiled"])


def line() -> ir.Model:
    """y = w x, w = 1."""
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="line"))
    x, w = g.input("x", FLOAT, ("N", 1)), g.initializer("w", np.ones((1, 1), np.float32))
    g.output(g.MatMul(x, w), "y")
    return ir.Model(g.graph, ir_version=10)


def numbers(count: int = 5) -> Dataset:
    x = np.arange(1, count + 1, dtype=np.float32)[:, None]
    return Dataset({"x": x}, np.zeros_like(x), task="regression")


def in_order(data: Dataset, batch: int) -> Loader:
    return Loader(data, batch, shuffle=False)


def some_ignored(samples: int = 30, ignored: int = -1) -> Dataset:
    x, y = networks.blobs(samples)
    y = np.where(np.random.default_rng(0).random(samples) < 0.4, ignored, y)
    return Dataset({"x": x}, y, ignore_index=ignored)


def state(trainer: Trainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in trainer._session.state.items()}


@ENGINES
@pytest.mark.parametrize(("epochs", "weight"), [(1, 0.425), (2, 0.180625)])
def test_an_epochs_last_window_has_the_batches_that_are_left(engine: str, epochs: int, weight: float) -> None:
    """Windows {1, 2, 3, 4} and {5}: w (1 − 0.01 · 2 · 7.5) and then w (1 − 0.01 · 2 · 25)."""
    trainer = Trainer(line(), "mse", SGD(learning_rate=0.01), accumulate=2, engine=engine)
    trainer.fit(in_order(numbers(), 2), epochs=epochs)
    np.testing.assert_allclose(trainer.weights()["w"], [[weight]], rtol=1e-6)


@ENGINES
def test_batches_of_a_window_weigh_by_their_samples(engine: str) -> None:
    """A window of 2, 2 and 1 samples makes the update of one batch of 5."""
    parts, whole = (
        Trainer(line(), "mse", SGD(learning_rate=0.01), accumulate=n, engine=engine) for n in (3, 1)
    )
    parts.fit(in_order(numbers(), 2), epochs=3)
    whole.fit(in_order(numbers(), 5), epochs=3)
    np.testing.assert_allclose(parts.weights()["w"], whole.weights()["w"], rtol=1e-6)
    np.testing.assert_allclose(parts.history["loss"], whole.history["loss"], rtol=1e-6)


LOSSES = {
    "ignored": CrossEntropy(ignore_index=-1),
    "class weights": CrossEntropy(class_weights=(0.25, 2.0, 1.0), ignore_index=-1),
    "smoothing": CrossEntropy(label_smoothing=0.2, ignore_index=-1),
    "everything": CrossEntropy(0.2, class_weights=(0.0, 2.0, 1.0), ignore_index=-1),
}


@ENGINES
@pytest.mark.parametrize("name", LOSSES)
def test_evaluation_is_the_same_at_any_batch_size(name: str, engine: str) -> None:
    data = some_ignored()
    trainer = Trainer(networks.mlp(), LOSSES[name], metrics=["accuracy", "f1", "top2"], engine=engine)
    found = [trainer.evaluate(data, batch_size=size) for size in (30, 7, 2, 1)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
    scores = trainer.predict(data)["scores"].astype(np.float64)
    logp = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    loss = LOSSES[name]
    weights = np.array(loss.class_weights or (1.0, 1.0, 1.0))
    valid = data.targets != -1
    labels = np.where(valid, data.targets, 0)
    of_label = weights[labels] * valid
    hard = -(of_label * logp[np.arange(30), labels]).sum()
    spread = -((weights * logp).sum(1) * valid).sum() / 3
    eps = loss.label_smoothing
    assert found[0]["loss"] == pytest.approx(((1 - eps) * hard + eps * spread) / of_label.sum(), rel=1e-5)
    assert found[0]["accuracy"] == pytest.approx((scores.argmax(1) == data.targets)[valid].mean())


@ENGINES
@pytest.mark.parametrize("name", LOSSES)
def test_accumulated_batches_with_ignored_labels_are_one_batch(name: str, engine: str) -> None:
    data = some_ignored()
    make = {"optimizer": Adam(learning_rate=0.05, epsilon=1e-3), "engine": engine}
    parts = Trainer(networks.mlp(), LOSSES[name], accumulate=5, **make)
    whole = Trainer(networks.mlp(), LOSSES[name], **make)
    parts.fit(in_order(data, 7), epochs=4)
    whole.fit(in_order(data, 30), epochs=4)
    for key, array in whole.weights().items():
        np.testing.assert_allclose(parts.weights()[key], array, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(parts.history["loss"], whole.history["loss"], rtol=1e-5)


@ENGINES
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", [SGD(learning_rate=0.1, momentum=0.9), Adam(weight_decay=0.1)])
def test_a_batch_without_labels_changes_nothing(engine: str, accumulate: int, optimizer) -> None:
    """Statistics, weights and optimizer state, to the byte, as if the batch had not been there."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((16, 1, 6, 6)).astype(np.float32)
    labels = np.arange(16) % 3
    with_gap = Dataset(
        {"image": np.concatenate([images[:8], images[:8] * 50, images[8:]])},
        np.concatenate([labels[:8], np.full(8, -1), labels[8:]]),
        ignore_index=-1,
    )
    model = networks.norm_net()
    next(node for node in model.graph if node.op_type == "Dropout").inputs[1].const_value = ir.tensor(
        np.array(0.0, np.float32)
    )

    def trained(data: Dataset) -> Trainer:
        trainer = Trainer(
            model,
            CrossEntropy(ignore_index=-1),
            optimizer,
            accumulate=accumulate,
            engine=engine,
            metrics=["f1"],
        )
        trainer.fit(in_order(data, 4), epochs=2)
        return trainer

    gap, plain = trained(with_gap), trained(Dataset({"image": images}, labels))
    assert state(gap) == state(plain)
    assert gap.history.rows == plain.history.rows


def test_only_what_counts_is_in_the_loss_of_an_epoch() -> None:
    data = some_ignored()
    trainer = Trainer(
        networks.mlp(), CrossEntropy(ignore_index=-1), SGD(learning_rate=0.0), metrics=["accuracy"]
    )
    history = trainer.fit(Loader(data, 4), epochs=1)
    assert history.rows[0] == pytest.approx(
        {"epoch": 1, "learning_rate": 0.0, **trainer.evaluate(data)}, rel=1e-5
    )


def two_heads() -> ir.Model:
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="heads"))
    x = g.input("x", FLOAT, ("N", 4))
    h = g.Tanh(g.MatMul(x, g.initializer("trunk", np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5))))
    for name, size in (("value", 2), ("scores", 3)):
        w = g.initializer(f"{name}.weight", np.linspace(-0.5, 1, 5 * size, dtype=np.float32).reshape(5, size))
        g.output(g.MatMul(h, w), name)
    return ir.Model(g.graph, ir_version=10)


@ENGINES
def test_losses_that_weigh_unlike_are_means_of_their_own(engine: str) -> None:
    """A head with a target for each sample beside one with few labels: joined exactly, not batch by batch."""
    x, _ = networks.blobs(30)
    labels = some_ignored().targets
    assert labels is not None
    data = Dataset({"x": x, "scores.target": labels}, x[:, :2] * 2, task="regression")
    losses = {"value": MSE(), "scores": CrossEntropy(ignore_index=-1)}

    def trainer(accumulate: int) -> Trainer:
        return Trainer(
            two_heads(),
            losses,
            SGD(learning_rate=0.1),
            loss_weights={"scores": 0.5},
            accumulate=accumulate,
            engine=engine,
        )

    parts, whole = trainer(5), trainer(1)
    assert len(parts.step.totals) == 2
    parts.fit(in_order(data, 7), epochs=3)
    whole.fit(in_order(data, 30), epochs=3)
    for key, array in whole.weights().items():
        np.testing.assert_allclose(parts.weights()[key], array, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(parts.history["loss"], whole.history["loss"], rtol=1e-5)
    assert parts.evaluate(data, batch_size=4) == pytest.approx(whole.evaluate(data, batch_size=30), rel=1e-5)


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_run_cut_inside_a_window_resumes_to_the_byte(tmp_path: Path, stop: int) -> None:
    class Cut(Callback):
        def on_step_end(self, run) -> None:
            if run.step == stop + 1:
                raise KeyboardInterrupt

    def trainer() -> Trainer:
        return Trainer(
            networks.mlp(dropout=0.3),
            CrossEntropy(ignore_index=-1),
            Adam(learning_rate=0.05),
            accumulate=3,
            clip=Clip(norm=0.5),
            metrics=["accuracy"],
        )

    loader, path = Loader(some_ignored(), 7), tmp_path / "run.npz"
    whole = trainer()
    expected = whole.fit(loader, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        trainer().fit(loader, epochs=2, callbacks=[Checkpoints(path, every=1), Cut()])
    resumed = trainer()
    assert resumed.fit(loader, epochs=2, resume=path).rows == expected.rows
    assert state(resumed) == state(whole)


def test_a_loss_of_ones_own_may_weigh_its_samples() -> None:
    class Distance(Loss):
        """|y − t|, a target of NaN left out."""

        def output(self, output):
            return output

        def target(self, output):
            return FLOAT, ("N", 1)

        def build(self, g, output, target):
            known = g.Not(g.IsNaN(target))
            each = g.Where(known, g.Abs(g.Sub(output, target)), 0.0)
            return Weighted(g.ReduceSum(each, keepdims=0), g.ReduceSum(g.Cast(known, to=1), keepdims=0))

    trainer = Trainer(line(), Distance(), SGD(learning_rate=0.1))
    step = trainer.step
    feeds = {"x": np.array([[1], [2], [3]], np.float32), "target": np.array([[0], [np.nan], [0]], np.float32)}
    feeds |= {"learning_rate": np.array(0.1, np.float32), "step": np.array(0), "update": np.array(1)}
    results = trainer._session.run(feeds)
    assert (results[step.loss], results["loss.total"], results["loss.weight"]) == (2, 4, 2)
    np.testing.assert_allclose(trainer.weights()["w"], [[1 - 0.1 * (1 + 3) / 2]])


@pytest.mark.parametrize("loss", [CrossEntropy(0.1, (0.5, 2.0, 1.0), ignore_index=2), CrossEntropy()])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_step_trains_in_onnxruntime_too(loss: Loss, accumulate: int) -> None:
    report = verify.compare_training(
        networks.mlp(), {"scores": loss}, Adam(), batch=6, steps=5, accumulate=accumulate
    )
    report.raise_if_failed()


def test_ignored_labels_in_data_sets() -> None:
    x, y = networks.blobs(12)
    labels = np.where(np.arange(12) < 4, -1, y)
    with pytest.raises(DataError, match="row 0: label -1 is out of range"):
        Dataset({"x": x}, labels)
    data = Dataset({"x": x}, labels, ignore_index=-1)
    assert data.class_count == 3
    assert data.take(np.arange(6)).ignore_index == -1
    assert data.digest() != Dataset({"x": x}, np.where(np.arange(12) < 4, 0, y)).digest()
    assert Dataset({"x": x}, np.where(labels < 0, 255, y), ignore_index=255).class_count == 3
    with pytest.raises(ConfigError, match=r"label -1 does not count, the loss has ignore_index=None"):
        Trainer(networks.mlp()).fit(data)
    with pytest.raises(DataError, match="every label is -1, which the loss ignores"):
        Trainer(networks.mlp(), CrossEntropy(ignore_index=-1)).fit((x, np.full(12, -1)))
    trainer = Trainer(networks.mlp(), CrossEntropy(ignore_index=-1), metrics=["accuracy", "recall_macro"][:1])
    assert np.isnan(trainer.evaluate((x, np.full(12, -1)))["loss"])
    assert np.isfinite(trainer.fit((x, labels), epochs=1)["accuracy"][0])


def test_weights_of_classes_are_checked() -> None:
    for weights in ((1.0, -1.0), (float("nan"), 1.0), (1.0, float("inf"))):
        with pytest.raises(ConfigError, match="class_weights must be finite and at least 0"):
            CrossEntropy(class_weights=weights)
