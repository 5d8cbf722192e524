"""Scripts written for Keras run here with the import changed, and mean the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from onward import keras
from onward.errors import ConfigError

HERE = Path(__file__).parent


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"keras_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = _module("scripts")
DATA: dict[str, np.ndarray[Any, Any]] = _module("samples").samples()
LEAST = {"binary_classifier": 0.93, "text_convnet": 0.97, "deep_convnet": 0.9, "sequence_lstm": 0.8}
"""Of the mean over three seeds."""


@pytest.mark.parametrize("name", SCRIPTS.TRAINED)
def test_a_script_learns(name: str) -> None:
    runs = [SCRIPTS.run(keras, name, DATA, seed=seed) for seed in range(3)]
    figures = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    if name == "regression":
        assert set(figures) == {"loss", "mae"}
        assert figures["loss"] < 0.6
    else:
        assert set(figures) == {"loss", "accuracy"}
        assert figures["accuracy"] > LEAST.get(name, 0.92)


def test_a_seed_gives_the_same_model_again() -> None:
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        keras.layers.Dense(4)
        models.append(keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)]))
    for first, second in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    """Answers and weights after some steps of every script with one set of weights: ours, and Keras's."""
    python = os.environ.get("ONWARD_TORCH_PYTHON")
    if not python:
        pytest.skip("ONWARD_TORCH_PYTHON does not name an interpreter with torch and Keras 3")
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"KERAS_BACKEND": "torch"}
    if subprocess.run([python, "-c", "import keras"], capture_output=True, check=False, env=plain).returncode:
        pytest.skip("the interpreter that ONWARD_TORCH_PYTHON names has no Keras 3")
    folder = tmp_path_factory.mktemp("keras")
    rng = np.random.default_rng(1)
    job, ours = dict(DATA), {}
    for name, (script, inputs, _, _) in SCRIPTS.TRAINED.items():
        model = script(keras)
        weights = [w + 0.1 * rng.random(w.shape, np.float32) for w in model.get_weights()]
        model.set_weights(weights)
        job |= {f"predict/{name}/{i}": w for i, w in enumerate(weights)}
        job[f"count/{name}"] = np.array(len(weights))
        ours[name] = model.predict(DATA[inputs][:16])
        ours |= {f"trained/{name}/{i}": w for i, w in enumerate(SCRIPTS.first_steps(model, name, DATA))}
    np.savez(folder / "job.npz", **job)
    done = subprocess.run(
        [python, str(HERE / "peer.py"), str(folder / "job.npz"), str(folder / "answer.npz")],
        capture_output=True,
        text=True,
        timeout=300,
        env=plain,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return ours, np.load(folder / "answer.npz")


def test_weights_mean_the_same_in_keras(both: tuple[dict[str, Any], Any]) -> None:
    """Keras's model with our weights gives our answers: layouts, orders, defaults and formulas agree."""
    ours, theirs = both
    for name in SCRIPTS.TRAINED:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-4, atol=2e-5, err_msg=name)


OTHERWISE = {
    "simple_convnet": "its dropout draws other numbers",
    "sequence_lstm": "ONNX's LSTM adds two biases, as torch's does, and each takes a step; Keras's has one",
}
CANCELLED = {
    "deep_convnet": (1,),
}
"""Biases in front of a batch normalisation: Keras makes steps of their gradient's rounding errors."""


@pytest.mark.parametrize("name", SCRIPTS.TRAINED)
def test_steps_are_those_of_keras(both: tuple[dict[str, Any], Any], name: str) -> None:
    """From equal weights, on equal batches, to equal weights: losses, optimizers, running statistics."""
    if name in OTHERWISE:
        pytest.skip(OTHERWISE[name])
    ours, theirs = both
    keys = [key for key in ours if key.startswith(f"trained/{name}/")]
    assert len(keys) > 1
    for i, key in enumerate(keys):
        if i not in CANCELLED.get(name, ()):
            assert np.abs(ours[key] - theirs[key]).mean() < 2e-5, key


def _dense() -> Any:
    return keras.Sequential([keras.Input(shape=(4,)), keras.layers.Dense(3, activation="softmax")])


def test_a_second_fit_goes_on_and_compile_begins_anew() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 4)).astype(np.float32), rng.integers(0, 3, 64)
    model = _dense()
    model.compile("adam", "sparse_categorical_crossentropy")
    first = model.fit(x, y, epochs=20, verbose=0).history["loss"]
    second = model.fit(x, y, epochs=20, verbose=0).history["loss"]
    assert first[-1] > second[-1]
    before = model.get_weights()
    model.compile("sgd", "sparse_categorical_crossentropy")
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("more", [{"epochs": 0}, {"epochs": 2, "initial_epoch": 2}])
def test_no_epochs_train_nothing(more: dict[str, int]) -> None:
    ended = []

    class Ended(keras.callbacks.Callback):
        def on_train_end(self, logs: Any = None) -> None:
            ended.append(logs)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer="sgd", loss="mse")
    before = model.get_weights()
    history = model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0, callbacks=[Ended()], **more)
    assert (history.history, history.epoch, len(ended)) == ({}, [], 1)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_functional_networks_of_several_inputs() -> None:
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    joined = keras.layers.Concatenate()([keras.layers.Dense(4, activation="relu")(left), right])
    model = keras.Model([left, right], keras.layers.Dense(1)(joined))
    model.compile("adam", "mse", ["mae"])
    rng = np.random.default_rng(0)
    x = {"left": rng.normal(size=(40, 3)).astype("f"), "right": rng.normal(size=(40, 2)).astype("f")}
    history = model.fit(x, x["left"][:, :1], epochs=30, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    np.testing.assert_array_equal(model.predict(x), model.predict([x["left"], x["right"]]))


def test_early_stopping_puts_the_best_weights_back() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 3, 60)
    model = _dense()
    model.compile(keras.optimizers.SGD(2.0), "sparse_categorical_crossentropy")
    kept: list[Any] = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda e, logs: kept.append((logs["val_loss"], model.get_weights()))
    )
    stop = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    history = model.fit(x, y, epochs=50, validation_split=0.3, verbose=0, callbacks=[watch, stop])
    losses = history.history["val_loss"]
    assert len(losses) < 50
    assert len(losses) == int(np.argmin(losses)) + 2
    for a, b in zip(min(kept, key=lambda k: k[0])[1], model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_saved_models_load_predict_and_train_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 4)).astype(np.float32), rng.integers(0, 3, 32)
    model = _dense()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "m.onnx")
    again = keras.models.load_model(tmp_path / "m.onnx")
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    again.compile("adam", "sparse_categorical_crossentropy")
    assert again.fit(x, y, epochs=30, verbose=0).history["loss"][-1] < model.evaluate(x, y, verbose=0)


def test_shares_of_classes_are_targets_too() -> None:
    """-sum t log p, by hand."""
    x = np.eye(4, dtype=np.float32)
    shares = np.full((4, 3), [0.2, 0.3, 0.5], np.float32)
    model = _dense()
    model.compile("sgd", "categorical_crossentropy")
    wanted = -(shares * np.log(model.predict(x))).sum(axis=1).mean()
    assert model.evaluate(x, shares, verbose=0) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("last", "loss", "message"),
    [
        (None, "sparse_categorical_crossentropy", "does not end in Softmax"),
        ("softmax", keras.losses.SparseCategoricalCrossentropy(from_logits=True), "ends in Softmax"),
        ("relu", "binary_crossentropy", "does not end in Sigmoid"),
    ],
)
def test_losses_of_probabilities_and_of_scores_are_told_apart(
    last: str | None, loss: Any, message: str
) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation=last)])
    model.compile("adam", loss)
    with pytest.raises(ConfigError, match=message):
        model.fit(np.zeros((8, 4), np.float32), np.zeros(8, np.int64), verbose=0)


def test_what_is_unknown_is_named() -> None:
    model = _dense()
    with pytest.raises(ConfigError, match="unknown loss 'hinge'"):
        model.compile("adam", "hinge")
    with pytest.raises(ConfigError, match="unknown metric 'auc'"):
        model.compile("adam", "mse", ["auc"])
    with pytest.raises(ConfigError, match="call compile"):
        _dense().fit(np.zeros((8, 4)), np.zeros(8))
    with pytest.raises(ConfigError, match="2 weights, 1 arrays"):
        model.set_weights([np.zeros((4, 3))])
    assert sys.modules["onward.keras"] is keras


def flat_history(callbacks: list[Any], epochs: int, **options: Any) -> tuple[Any, list[float]]:
    """A model whose loss stays the same, and the learning rates of its epochs."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
    rates: list[float] = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: rates.append(model.learning_rate))
    x, y = np.zeros((4, 2), np.float32), np.ones((4, 1), np.float32)
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=[watch, *callbacks], **options)
    return model, rates


def test_the_learning_rate_falls_where_the_loss_stays() -> None:
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=2, min_lr=0.1)
    model, rates = flat_history([plateau], 9)
    # as in Keras 3: the first epoch is the best, then two epochs of patience each time
    assert rates == [0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.1, 0.1]
    assert model.learning_rate == 0.1
    waiting = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, cooldown=2)
    assert flat_history([waiting], 7)[1] == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625]
    with pytest.raises(ConfigError, match="factor must be"):
        keras.callbacks.ReduceLROnPlateau(factor=1.0)


def test_a_schedule_gives_each_epoch_its_learning_rate() -> None:
    by_epoch = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))
    assert flat_history([by_epoch], 3)[1] == [0.1, 0.05, pytest.approx(0.1 / 3)]
    by_rate = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate if epoch < 1 else rate / 2)
    assert flat_history([by_rate], 3)[1] == [0.5, 0.25, 0.125]
    with pytest.raises(ConfigError, match="gives the learning rate nan"):
        flat_history([keras.callbacks.LearningRateScheduler(lambda epoch: float("nan"))], 1)


def test_a_learning_rate_that_is_set_is_used() -> None:
    x, y = np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
    model.set_weights([np.ones((1, 1), np.float32)])
    halves = keras.callbacks.LearningRateScheduler(lambda epoch: (0.25, 0.125)[epoch])
    model.fit(x, y, epochs=2, verbose=0, callbacks=[halves])
    # w -= rate * 2 w
    np.testing.assert_allclose(model.get_weights()[0], [[0.5 * 0.75]], rtol=1e-6)
    model.fit(x, y, epochs=1, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], [[0.5 * 0.75 * 0.75]], rtol=1e-6)
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
    assert model.learning_rate == 0.5
