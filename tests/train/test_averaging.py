"""Averages are those that a loop over the run's own weights computes, and go through everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.train import networks

from onward.data import Dataset, Loader
from onward.engine import Session
from onward.errors import ConfigError, TrainingError
from onward.parallel import run_ranks
from onward.train import EMA, SGD, SWA, Adam, Callback, Checkpoints, EarlyStopping, Trainer

ENGINES = ["interpreter", "compiled"]


class Seen(Callback):
    """Keeps the weights after each step and each epoch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, np.ndarray]] = []
        self.epochs: list[dict[str, np.ndarray]] = []

    @staticmethod
    def _raw(run: Any) -> dict[str, np.ndarray]:
        names = (*run.layout.parameters, *run.layout.statistics)
        return {name: np.array(run.session.state[name], np.float64) for name in names}

    def on_step_end(self, run: Any) -> None:
        self.steps.append(self._raw(run))

    def on_epoch_end(self, run: Any) -> None:
        self.epochs.append(self._raw(run))


class Interrupt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, run: Any) -> None:
        if run.step == self.step:
            raise KeyboardInterrupt


def images(count: int = 40) -> Dataset:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((count, 1, 6, 6)) * 2 + 1).astype(np.float32)
    return Dataset({"image": x}, np.arange(count) % 3)


def trained(averaging: Any, epochs: int = 4, **options: Any) -> tuple[Trainer, Seen]:
    seen = Seen()
    fit = options.pop("fit", {})
    trainer = Trainer(
        networks.norm_net(), optimizer=SGD(learning_rate=0.05), averaging=averaging, seed=1, **options
    )
    trainer.fit(
        Loader(images(), 8, 5),
        epochs=epochs,
        callbacks=[seen, *fit.pop("callbacks", [])],
        progress=False,
        **fit,
    )
    return trainer, seen


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("warmup", [False, True])
def test_ema_is_the_average_of_the_updates(warmup: bool, engine: str) -> None:
    trainer, seen = trained(EMA(decay=0.8, warmup=warmup), engine=engine)
    wanted = seen.steps[0]
    for n, new in enumerate(seen.steps[1:], start=1):
        decay = min(0.8, n / (n + 9)) if warmup else 0.8
        wanted = {name: decay * a + (1 - decay) * new[name] for name, a in wanted.items()}
    found = trainer.weights()
    assert "bn.running_var" in found
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-5, atol=2e-6, err_msg=name)
        assert np.abs(seen.steps[-1][name] - array).max() > 1e-4, name


def test_ema_counts_updates_not_batches() -> None:
    trainer, seen = trained(EMA(decay=0.5, warmup=False), epochs=1, accumulate=2)
    updates = [seen.steps[1], seen.steps[3], seen.steps[4]]  # five batches: windows of 2, 2 and 1
    wanted = 0.5 * (0.5 * updates[0]["head.weight"] + 0.5 * updates[1]["head.weight"])
    wanted = wanted + 0.5 * updates[2]["head.weight"]
    np.testing.assert_allclose(trainer.weights()["head.weight"], wanted, rtol=1e-5, atol=1e-7)
    assert trainer.state[trainer.step.averaged or ""] == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_swa_is_the_mean_of_the_ends_of_epochs_with_statistics_of_its_own(engine: str) -> None:
    trainer, seen = trained(SWA(start=3), engine=engine)
    found = trainer.weights()
    for name in trainer.trainable:
        wanted = (seen.epochs[2][name] + seen.epochs[3][name]) / 2
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-7, err_msg=name)
    # what the normalization is given, for all data at once, with the averaged kernel
    model = networks.norm_net()
    node = next(n for n in model.graph if n.op_type == "BatchNormalization")
    conv = node.inputs[0]
    assert conv is not None
    model.graph.outputs.clear()
    model.graph.outputs.append(conv)
    session = Session(model, engine="interpreter")
    session.load_weights({"conv.weight": found["conv.weight"]})
    y = session.run({"image": images().inputs["image"]})[conv.name or ""].astype(np.float64)
    np.testing.assert_allclose(found["bn.running_mean"], y.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(found["bn.running_var"], y.var(axis=(0, 2, 3)), rtol=1e-4)
    assert np.abs(seen.epochs[3]["bn.running_var"] / found["bn.running_var"] - 1).max() > 0.01


def test_the_average_is_evaluated_exported_and_predicted_with() -> None:
    data = images()
    trainer, _ = trained("ema", fit={"validation": data})
    plain, _ = trained(None)
    assert trainer.history.rows[-1]["val_loss"] == pytest.approx(trainer.evaluate(data)["loss"], rel=1e-6)
    own = Trainer(trainer.model).evaluate(data)["loss"]
    assert own == pytest.approx(trainer.evaluate(data)["loss"], rel=1e-6)
    assert own != pytest.approx(plain.evaluate(data)["loss"], rel=1e-6)
    scores = Session(trainer.model).run({"image": data.inputs["image"]})["scores"]
    np.testing.assert_allclose(trainer.predict(data)["scores"], scores, rtol=1e-5, atol=1e-6)


def test_before_its_start_swa_changes_nothing_and_the_next_run_begins_with_the_average() -> None:
    trainer, seen = trained(SWA(start=2), epochs=3)
    other, early = trained(None, epochs=1)
    np.testing.assert_array_equal(early.epochs[0]["head.weight"], seen.epochs[0]["head.weight"])
    average = trainer.weights()["head.weight"].copy()
    again = Trainer(trainer.model, optimizer=SGD(learning_rate=0.05), averaging=SWA(start=2), seed=1)
    for each in (trainer, again):
        each.fit(Loader(images(), 8, 5), epochs=2, progress=False)
    np.testing.assert_array_equal(trainer.weights()["head.weight"], again.weights()["head.weight"])
    assert not np.array_equal(average, trainer.weights()["head.weight"])
    assert other.step.averaged is None


def test_swa_takes_its_own_learning_rate() -> None:
    trainer, _ = trained(SWA(start=0.5, learning_rate=0.2))
    assert [row["learning_rate"] for row in trainer.history.rows] == pytest.approx([0.05, 0.05, 0.01, 0.01])


@pytest.mark.parametrize("averaging", [EMA(decay=0.9), SWA(start=2)], ids=["ema", "swa"])
@pytest.mark.parametrize("stop", [1, 7, 12, 16])
def test_a_resumed_run_has_the_same_average(tmp_path: Path, averaging: Any, stop: int) -> None:
    path = tmp_path / "run.npz"
    validation = {"validation": images()}
    whole, _ = trained(averaging, fit=dict(validation))
    with pytest.raises(KeyboardInterrupt):
        trained(
            averaging,
            fit={**validation, "callbacks": [Checkpoints(path, every=1), Interrupt(stop + 1)]},
        )
    second, _ = trained(averaging, fit={**validation, "resume": path})
    assert {n: a.tobytes() for n, a in second.state.items()} == {
        n: a.tobytes() for n, a in whole.state.items()
    }
    assert second.history.rows == whole.history.rows
    with pytest.raises(TrainingError, match="averaging"):
        trained(SWA(start=4), fit={**validation, "resume": path})


def test_early_stopping_puts_the_best_average_back() -> None:
    data = images()
    stopping = EarlyStopping("val_loss", patience=9)
    trainer, _ = trained(SWA(start=2), epochs=6, fit={"validation": data, "callbacks": [stopping]})
    best = min(row["val_loss"] for row in trainer.history.rows)
    assert trainer.evaluate(data)["loss"] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("averaging", [EMA(decay=0.9), SWA(start=1)], ids=["ema", "swa"])
def test_ranks_have_the_average_of_one(averaging: Any, shard: bool) -> None:
    def run(ranks: Any) -> dict[str, np.ndarray]:
        x, y = networks.blobs()
        trainer = Trainer(
            networks.mlp(dropout=0.3),
            optimizer=Adam(0.01),
            averaging=averaging,
            seed=3,
            threads=1,
            parallel=ranks,
            shard=shard and ranks is not None,
        )
        trainer.fit((x, y), epochs=2, batch_size=13, progress=False)
        return {name: array.copy() for name, array in trainer.weights().items()}

    alone = run(None)
    for found in run_ranks(2, run):
        for name, array in alone.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=2e-6, err_msg=name)


def test_ranks_measure_statistics_together() -> None:
    """From the same weights: batch normalization by shares makes others."""

    def run(ranks: Any) -> dict[str, np.ndarray]:
        trainer = Trainer(
            networks.norm_net(), optimizer=SGD(0.0), averaging=SWA(start=1), threads=1, parallel=ranks
        )
        trainer.fit(Loader(images(), 8, 5), epochs=1, progress=False)
        return {name: array.copy() for name, array in trainer.weights().items()}

    alone = run(None)
    for found in run_ranks(2, run):
        for name, array in alone.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"decay must be in \[0, 1\)"):
        EMA(decay=1.0)
    with pytest.raises(ConfigError, match="start must be"):
        SWA(start=1.5)
    with pytest.raises(ConfigError, match="averaged from epoch 5 on, but the run has 4"):
        trained(SWA(start=5))
    with pytest.raises(ConfigError, match="unknown averaging"):
        trained("mean")

    def batches():
        yield images().inputs["image"], images().targets

    trainer = Trainer(networks.norm_net(), averaging=SWA(start=1))
    with pytest.raises(ConfigError, match="which a generator cannot"):
        trainer.fit(batches(), steps_per_epoch=1)
