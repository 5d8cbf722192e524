"""Answers what Keras and torch say of the cases in a folder; knows nothing of onward.

    python peers.py FOLDER

FOLDER/cases.json holds the cases, FOLDER/arrays.npz their arrays; FOLDER/answers.json is written with one
entry a library: `signatures` (options and defaults by class), and an answer for each case. Keras is null
where it is not installed.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ["KERAS_BACKEND"] = "torch"

import torch
import torch.nn.functional as F  # noqa: N812

try:
    import keras
except ImportError:
    keras = None

assert not [name for name in sys.modules if name.split(".")[0] == "onward"]


def options(cls: type) -> dict[str, Any]:
    found = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in found if isinstance(p.default, str | int | float | tuple | type(None))}


class Model:
    """What Keras callbacks ask of a model."""

    def __init__(self) -> None:
        self.stop_training = False
        self.optimizer = keras.optimizers.SGD(1.0)
        self.weights = 0

    def get_weights(self) -> int:
        return self.weights

    def set_weights(self, weights: int) -> None:
        self.weights = weights


def keras_stopping(case: dict[str, Any]) -> dict[str, Any]:
    callback = keras.callbacks.EarlyStopping(
        "val_loss", mode="min", restore_best_weights=True, **case["options"]
    )
    model = Model()
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, figure in enumerate(case["figures"]):
        model.weights = epoch + 1
        callback.on_epoch_end(epoch, {"val_loss": figure})
        if model.stop_training:
            break
    callback.on_train_end()
    return {"epochs": epoch + 1, "kept": model.weights}


def keras_plateau(case: dict[str, Any]) -> list[float]:
    callback = keras.callbacks.ReduceLROnPlateau(
        "val_loss", factor=0.5, mode="min", min_delta=0.0, patience=case["patience"], min_lr=0.1
    )
    model = Model()
    callback.set_model(model)
    callback.on_train_begin()
    rates = []
    for epoch, figure in enumerate(case["figures"]):
        callback.on_epoch_end(epoch, {"val_loss": figure})
        rates.append(float(model.optimizer.learning_rate))
    return rates


def torch_plateau(case: dict[str, Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, threshold=0.0, patience=case["patience"] - 1, min_lr=0.1
    )
    rates = []
    for figure in case["figures"]:
        schedule.step(figure)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def keras_updates(case: dict[str, Any], arrays: Any) -> list[float]:
    optimizer = getattr(keras.optimizers, case["keras"][0])(**case["keras"][1])
    parameter = keras.Variable(arrays["start"], dtype="float64")
    for gradient in arrays["gradients"]:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [parameter])
    return keras.ops.convert_to_numpy(parameter).tolist()


def keras_schedule(case: dict[str, Any]) -> list[float]:
    schedule = getattr(keras.optimizers.schedules, case["keras"][0])(1.0, **case["keras"][1])
    return [float(schedule(step)) for step in range(case["steps"])]


def torch_schedule(case: dict[str, Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = getattr(torch.optim.lr_scheduler, case["torch"][0])(optimizer, **case["torch"][1])
    rates = []
    for _ in range(case["steps"]):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def keras_losses(arrays: Any) -> dict[str, float]:
    scores, labels = arrays["scores"], arrays["labels"]
    real, binary, mass = arrays["real"], arrays["binary"], arrays["mass"]
    some = np.where(np.arange(len(labels)) % 3 == 0, -1, labels)
    one_hot = np.eye(scores.shape[1])[labels]
    loss = keras.losses
    softmax = keras.ops.softmax(keras.ops.convert_to_tensor(scores))
    found = {
        "mse": loss.MeanSquaredError()(real, scores),
        "l1": loss.MeanAbsoluteError()(real, scores),
        "huber": loss.Huber()(real, scores),
        "binary_cross_entropy": loss.BinaryCrossentropy(from_logits=True)(binary, scores),
        "cross_entropy": loss.SparseCategoricalCrossentropy(from_logits=True)(labels, scores),
        "smoothing": loss.CategoricalCrossentropy(from_logits=True, label_smoothing=0.125)(one_hot, scores),
        "ignored": loss.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)(some, scores),
        "weighted": loss.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")(
            labels, scores, sample_weight=arrays["weights"][labels]
        ),
        "kl_divergence": loss.KLDivergence()(mass, softmax),
    }
    return {name: float(value) for name, value in found.items()}


def torch_losses(arrays: Any) -> dict[str, float]:
    tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    scores, labels, real = tensors["scores"], tensors["labels"], tensors["real"]
    some = torch.where(torch.arange(len(labels)) % 3 == 0, -1, labels)
    found = {
        "mse": F.mse_loss(scores, real),
        "l1": F.l1_loss(scores, real),
        "huber": F.huber_loss(scores, real),
        "binary_cross_entropy": F.binary_cross_entropy_with_logits(scores, tensors["binary"]),
        "cross_entropy": F.cross_entropy(scores, labels),
        "smoothing": F.cross_entropy(scores, labels, label_smoothing=0.125),
        "ignored": F.cross_entropy(scores, some, ignore_index=-1),
        "weighted": F.cross_entropy(scores, labels, weight=tensors["weights"]),
        "kl_divergence": F.kl_div(F.log_softmax(scores, 1), tensors["mass"], reduction="batchmean"),
    }
    return {name: float(value) for name, value in found.items()}


def keras_weighted(case: dict[str, Any], arrays: Any) -> dict[str, Any]:
    """The weights of one dense layer after two epochs in order, and the history."""
    x, y, units = arrays["scores"], arrays[case["targets"]], case["units"]
    model = keras.Sequential([keras.Input((x.shape[1],)), keras.layers.Dense(units, case["activation"])])
    start = np.full((x.shape[1], units), 0.1) * np.arange(1, units + 1)
    model.set_weights([start, np.zeros(units)])
    model.compile(keras.optimizers.SGD(0.1), case["loss"])
    options = {}
    if "class_weight" in case:
        options["class_weight"] = {int(label): weight for label, weight in case["class_weight"].items()}
    if case["sample_weight"]:
        options["sample_weight"] = arrays["sample_weight"]
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, **options)
    return {"weights": [w.tolist() for w in model.get_weights()], "loss": history.history["loss"]}


def keras_metrics(arrays: Any) -> dict[str, float]:
    scores, labels, real = arrays["scores"], arrays["labels"], arrays["real"]
    one_hot = np.eye(scores.shape[1])[labels]
    softmax = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    hard = np.eye(scores.shape[1])[scores.argmax(1)]
    metric = keras.metrics
    cases = {
        "accuracy": (metric.SparseCategoricalAccuracy(), labels, scores),
        "top2": (metric.SparseTopKCategoricalAccuracy(2), labels, scores),
        "precision_micro": (metric.Precision(), one_hot, hard),
        "recall_micro": (metric.Recall(), one_hot, hard),
        "f1": (metric.F1Score(average="macro"), one_hot, softmax),
        "f1_micro": (metric.F1Score(average="micro"), one_hot, softmax),
        "f1_weighted": (metric.F1Score(average="weighted"), one_hot, softmax),
        "mae": (metric.MeanAbsoluteError(), real, scores),
        "mse": (metric.MeanSquaredError(), real, scores),
        "rmse": (metric.RootMeanSquaredError(), real, scores),
        "r2": (metric.R2Score(), real, scores),
    }
    found = {}
    for name, (measure, truth, predicted) in cases.items():
        for rows in (slice(0, 7), slice(7, None)):
            measure.update_state(truth[rows], predicted[rows])
        found[name] = float(measure.result())
    return found


def keras_initializers(names: list[str]) -> dict[str, list[float]]:
    """Mean, deviation and 99.9 % quantile of the magnitude of values with 300 inputs and 1000 outputs."""
    found = {}
    for name in names:
        values = keras.ops.convert_to_numpy(keras.initializers.get(name)((300, 1000), dtype="float64"))
        found[name] = [float(values.mean()), float(values.std()), float(np.quantile(np.abs(values), 0.999))]
    return found


KERAS = {
    "optimizers": ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"],
    "callbacks": ["EarlyStopping", "ReduceLROnPlateau"],
    "losses": ["Huber", "CategoricalCrossentropy"],
    "initializers": ["VarianceScaling"],
}
TORCH = {
    torch.optim: KERAS["optimizers"],
    torch.optim.lr_scheduler: ["StepLR", "ReduceLROnPlateau", "CosineAnnealingLR"],
    torch.nn: ["HuberLoss", "CrossEntropyLoss"],
}


def main(folder: Path) -> None:
    cases = json.loads((folder / "cases.json").read_text())
    arrays = np.load(folder / "arrays.npz")
    answers: dict[str, Any] = {
        "torch": {
            "signatures": {
                name: options(getattr(where, name)) for where, names in TORCH.items() for name in names
            },
            "plateaus": [torch_plateau(case) for case in cases["plateaus"]],
            "schedules": {n: torch_schedule(c) for n, c in cases["schedules"].items()},
            "losses": torch_losses(arrays),
        },
        "keras": None,
    }
    if keras is not None:
        keras.config.set_floatx("float64")
        answers["keras"] = {
            "signatures": {
                name: options(getattr(getattr(keras, where), name))
                for where, names in KERAS.items()
                for name in names
            },
            "stoppings": [keras_stopping(case) for case in cases["stoppings"]],
            "plateaus": [keras_plateau(case) for case in cases["plateaus"]],
            "updates": {name: keras_updates(case, arrays) for name, case in cases["updates"].items()},
            "schedules": {n: keras_schedule(c) for n, c in cases["schedules"].items() if "keras" in c},
            "losses": keras_losses(arrays),
            "metrics": keras_metrics(arrays),
            "weighted": {name: keras_weighted(case, arrays) for name, case in cases["weighted"].items()},
            "initializers": keras_initializers(cases["initializers"]),
        }
    (folder / "answers.json").write_text(json.dumps(answers, default=repr))


main(Path(sys.argv[1]))
