"""What is called as in Keras or torch does what it does there: docs/compared_with_keras_and_torch.md, tested.

ONWARD_TORCH_PYTHON names an interpreter with torch, and with Keras 3 if the half against Keras is to run.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onward import keras as own_keras
from onward import nn
from onward.autodiff.objective import write_objective
from onward.engine import Interpreter
from onward.graph import Builder
from onward.keras import callbacks
from onward.nn import initializers
from onward.train import (
    L1,
    MSE,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    BinaryCrossEntropy,
    Clip,
    Cosine,
    CrossEntropy,
    EarlyStopping,
    Exponential,
    Huber,
    KLDivergence,
    Loss,
    Optimizer,
    ReduceOnPlateau,
    RMSprop,
    Schedule,
    Step,
    create_metric,
    losses,
)
from onward.train.schedules import Progress

SCRIPT = Path(__file__).with_name("peers.py")
PYTHON = os.environ.get("ONWARD_TORCH_PYTHON", "")

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="ONWARD_TORCH_PYTHON does not name an interpreter with torch"
)

RNG = np.random.default_rng(0)
LABELS = np.arange(20) % 4
ARRAYS = {
    "scores": RNG.standard_normal((20, 4)) * 2,
    "labels": LABELS,
    "real": RNG.standard_normal((20, 4)),
    "binary": RNG.integers(0, 2, (20, 4)).astype(np.float64),
    "mass": RNG.dirichlet(np.ones(4), 20),
    "weights": np.array([0.5, 2.0, 1.0, 0.25]),
    "sample_weight": np.array([0.5, 1.0, 2.0, 0.0, 3.0] * 4),
    "start": RNG.standard_normal(6),
    # far from 0, where ε, which the libraries add in different places, is felt
    "gradients": RNG.choice([-1, 1], (8, 6)) * RNG.uniform(0.5, 2, (8, 6)),
}

UPDATES: dict[str, tuple[Optimizer, list[Any], Clip | None]] = {
    "sgd": (SGD(), ["SGD", {}], None),
    "momentum": (SGD(momentum=0.9), ["SGD", {"momentum": 0.9}], None),
    "nesterov": (SGD(momentum=0.9, nesterov=True), ["SGD", {"momentum": 0.9, "nesterov": True}], None),
    "adam": (Adam(), ["Adam", {}], None),
    "adamw": (AdamW(), ["AdamW", {"weight_decay": 0.01}], None),
    "rmsprop": (RMSprop(), ["RMSprop", {}], None),
    "rmsprop, momentum": (RMSprop(momentum=0.5), ["RMSprop", {"momentum": 0.5}], None),
    "adagrad": (Adagrad(), ["Adagrad", {}], None),
    "clipped by value": (SGD(), ["SGD", {"clipvalue": 0.75}], Clip(value=0.75)),
    "clipped by norm": (SGD(), ["SGD", {"global_clipnorm": 0.75}], Clip(norm=0.75)),
}

NAN = math.nan
# a first figure of NaN is left out: Keras takes it for the best, and nothing after it for better
SEQUENCES = [
    [3.0, 2.0, 2.5, 2.4, 2.3, 1.0],
    [1.0, 1.0, 1.0, 1.0],
    [3.0, NAN, NAN, NAN, 2.0],
    [2.0, NAN, 1.0, NAN, NAN, 0.5],
    [2.0, 1.95, 1.9, 1.85, 1.8, 1.0],
    [math.inf, 5.0, math.inf, 6.0, 4.0],
    [math.inf, math.inf, math.inf, math.inf],
]
STOPPINGS = [
    {"figures": figures, "options": {"patience": patience, "min_delta": change}}
    for figures in SEQUENCES
    for patience in (0, 1, 2, 3)
    for change in (0.0, 0.1)
]
PLATEAUS = [
    {"figures": [f if f == f else 9.0 for f in figures], "patience": patience}
    for figures in SEQUENCES
    for patience in (1, 2, 3)
]
SCHEDULES: dict[str, tuple[Schedule, dict[str, Any]]] = {
    "step": (Step(every=3, gamma=0.5), {"torch": ["StepLR", {"step_size": 3, "gamma": 0.5}]}),
    "exponential": (
        Exponential(gamma=0.9),
        {
            "torch": ["ExponentialLR", {"gamma": 0.9}],
            "keras": ["ExponentialDecay", {"decay_steps": 1, "decay_rate": 0.9}],
        },
    ),
    "cosine": (
        Cosine(minimum=0.1),
        {
            "torch": ["CosineAnnealingLR", {"T_max": 12, "eta_min": 0.1}],
            "keras": ["CosineDecay", {"decay_steps": 12, "alpha": 0.1}],
        },
    ),
}
LOSSES: dict[str, tuple[Loss, np.ndarray]] = {
    "mse": (MSE(), ARRAYS["real"]),
    "l1": (L1(), ARRAYS["real"]),
    "huber": (Huber(), ARRAYS["real"]),
    "binary_cross_entropy": (BinaryCrossEntropy(), ARRAYS["binary"]),
    "cross_entropy": (CrossEntropy(), LABELS),
    "smoothing": (CrossEntropy(label_smoothing=0.125), LABELS),
    "ignored": (CrossEntropy(ignore_index=-1), np.where(np.arange(20) % 3 == 0, -1, LABELS)),
    "weighted": (CrossEntropy(class_weights=(0.5, 2.0, 1.0, 0.25)), LABELS),
    "kl_divergence": (KLDivergence(), ARRAYS["mass"]),
}
WEIGHTED: dict[str, dict[str, Any]] = {
    "sample_weight": {
        "loss": "mse", "targets": "real", "units": 4, "activation": "linear", "sample_weight": True,
    },
    "class_weight": {
        "loss": "sparse_categorical_crossentropy", "targets": "labels", "units": 4, "activation": "softmax",
        "class_weight": {0: 0.5, 2: 3.0}, "sample_weight": False,
    },
}  # fmt: skip
METRICS = (
    "accuracy", "top2", "precision_micro", "recall_micro", "f1", "f1_micro", "f1_weighted",
    "mae", "mse", "rmse", "r2",
)  # fmt: skip
DRAWN = [name for name in initializers.names() if name not in ("zeros", "ones")]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("peers")
    cases = {
        "stoppings": STOPPINGS,
        "plateaus": PLATEAUS,
        "updates": {name: {"keras": keras} for name, (_, keras, _) in UPDATES.items()},
        "schedules": {name: {**peers, "steps": 12} for name, (_, peers) in SCHEDULES.items()},
        "initializers": DRAWN,
        "weighted": WEIGHTED,
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    np.savez(folder / "arrays.npz", **ARRAYS)
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
    found: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return found


@pytest.fixture
def torch(answers: dict[str, Any]) -> dict[str, Any]:
    return answers["torch"]


@pytest.fixture
def keras(answers: dict[str, Any]) -> dict[str, Any]:
    if answers["keras"] is None:
        pytest.skip("the interpreter that ONWARD_TORCH_PYTHON names has no Keras 3")
    return answers["keras"]


def defaults(cls: type) -> dict[str, Any]:
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


OPTIMIZERS = (SGD, Adam, AdamW, RMSprop, Adagrad)
KERAS_CLASSES = {
    **{cls: cls.__name__ for cls in OPTIMIZERS},
    EarlyStopping: "EarlyStopping",
    ReduceOnPlateau: "ReduceLROnPlateau",
    Huber: "Huber",
    CrossEntropy: "CategoricalCrossentropy",
    nn.VarianceScaling: "VarianceScaling",
}
TORCH_CLASSES = {
    **{cls: cls.__name__ for cls in OPTIMIZERS},
    ReduceOnPlateau: "ReduceLROnPlateau",
    Step: "StepLR",
    Huber: "HuberLoss",
    CrossEntropy: "CrossEntropyLoss",
}
EXCEPTIONS = {
    # both libraries have the name: its form and default are torch's
    ("keras", "AdamW", "weight_decay"): 0.01,
    # classes stand where ONNX and torch have them
    ("keras", "CategoricalCrossentropy", "axis"): 1,
}


@pytest.mark.parametrize("library", ["keras", "torch"])
def test_options_with_their_names_have_their_defaults(library: str, request: pytest.FixtureRequest) -> None:
    signatures = request.getfixturevalue(library)["signatures"]
    compared = 0
    for ours, name in (KERAS_CLASSES if library == "keras" else TORCH_CLASSES).items():
        theirs = signatures[name]
        for option, value in defaults(ours).items():
            if option in theirs:
                expected = EXCEPTIONS.get((library, name, option), theirs[option])
                # Keras has None where no weight decays
                if not (option == "weight_decay" and expected is None and value == 0):
                    assert value == (0 if expected is None else expected) or (value, expected) == (
                        None,
                        -100,
                    ), f"{name}.{option}"
                compared += 1
    assert compared >= (24 if library == "keras" else 13)


def stepped(optimizer: Optimizer, clip: Clip | None) -> np.ndarray:
    """The parameter after the updates, in float64."""
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="update"))
    double = ir.DataType.DOUBLE
    p, d = g.input("p", double, (6,)), g.input("d", double, (6,))
    rate, t = g.input("rate", double, ()), g.input("t", ir.DataType.INT64, ())
    slots = {name: g.input(name, double, (6,)) for name in optimizer.slots()}
    gradient = d if clip is None else clip(g, {"p": d})["p"]
    new, after = optimizer.update(g, p, gradient, slots, rate, t)
    g.output(new, "p.next")
    for name, value in after.items():
        g.output(value, f"{name}.next")
    program = Interpreter(g.graph)
    state = {"p": ARRAYS["start"], **{name: np.full(6, fill) for name, fill in optimizer.slots().items()}}
    for number, array in enumerate(ARRAYS["gradients"], 1):
        feeds = {"d": array, "rate": np.array(optimizer.learning_rate), "t": np.array(number)}
        results = program.run({**state, **feeds})
        state = {name: results[f"{name}.next"] for name in state}
    return state["p"]


@pytest.mark.parametrize("name", UPDATES)
def test_optimizers_go_where_keras_goes(name: str, keras: dict[str, Any]) -> None:
    optimizer, _, clip = UPDATES[name]
    np.testing.assert_allclose(stepped(optimizer, clip), keras["updates"][name], rtol=1e-5)


def test_early_stopping_stops_and_restores_when_keras_does(keras: dict[str, Any]) -> None:
    for case, theirs in zip(STOPPINGS, keras["stoppings"], strict=True):
        options = case["options"]
        stopping = EarlyStopping("val_loss", options["patience"], "min", options["min_delta"])
        rows: list[dict[str, float]] = []
        reasons: list[str] = []
        session = SimpleNamespace(state={"w": np.zeros(1)})
        session.load_state = lambda state, session=session: session.__setattr__("state", dict(state))
        run: Any = SimpleNamespace(
            history=_Rows(rows),
            session=session,
            step=0,
            validation=object(),
            settled=True,
            stop=reasons.append,
        )
        stopping.on_train_begin(run)
        for epoch, figure in enumerate(case["figures"], 1):
            session.state = {"w": np.array([float(epoch)])}
            rows.append({"val_loss": figure})
            with pytest.warns(RuntimeWarning, match="is NaN") if math.isnan(figure) else nullcontext():
                stopping.on_epoch_end(run)
            if reasons:
                break
        stopping.on_train_end(run)
        assert len(rows) == theirs["epochs"], case
        assert session.state["w"][0] == theirs["kept"], case


def test_the_callback_of_keras_scripts_is_keras_own(keras: dict[str, Any]) -> None:
    for case, theirs in zip(STOPPINGS, keras["stoppings"], strict=True):
        options = {"restore_best_weights": True, **case["options"]}
        stopping = callbacks.EarlyStopping("val_loss", mode="min", **options)
        model = SimpleNamespace(stop_training=False, weights=0)
        model.get_weights = lambda model=model: model.weights
        model.set_weights = lambda weights, model=model: model.__setattr__("weights", weights)
        stopping.model = model
        stopping.on_train_begin()
        for epoch, figure in enumerate(case["figures"]):
            model.weights = epoch + 1
            with pytest.warns(RuntimeWarning, match="is NaN") if math.isnan(figure) else nullcontext():
                stopping.on_epoch_end(epoch, {"val_loss": figure})
            if model.stop_training:
                break
        stopping.on_train_end()
        assert {"epochs": epoch + 1, "kept": model.weights} == theirs, case


class _Rows:
    """A history's rows and length."""

    def __init__(self, rows: list[dict[str, float]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)


@pytest.mark.parametrize("library", ["keras", "torch"])
def test_plateaus_lower_the_rate_when_theirs_do(library: str, request: pytest.FixtureRequest) -> None:
    """torch's patience is one less for the same epoch, and to it a first loss of infinity is a bad one."""
    for case, theirs in zip(PLATEAUS, request.getfixturevalue(library)["plateaus"], strict=True):
        if library == "torch" and case["figures"][0] == math.inf:
            continue
        schedule = ReduceOnPlateau(gamma=0.5, patience=case["patience"], threshold=0.0, minimum=0.1)
        state: dict[str, float] = {}
        rates = []
        for figure in case["figures"]:
            schedule.observe(figure, state)
            rates.append(state.get("factor", 1.0))
        assert rates == pytest.approx(theirs), case


@pytest.mark.parametrize("library", ["keras", "torch"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_have_their_rates(name: str, library: str, request: pytest.FixtureRequest) -> None:
    schedule, peers = SCHEDULES[name]
    if library not in peers:
        pytest.skip(f"{library} has no such schedule")
    # one update an epoch
    ours = [schedule.factor(Progress(i, 12, i, 12), {}) for i in range(12)]
    assert ours == pytest.approx(request.getfixturevalue(library)["schedules"][name], rel=1e-6)


@pytest.mark.parametrize("library", ["keras", "torch"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_have_their_values(name: str, library: str, request: pytest.FixtureRequest) -> None:
    loss, target = LOSSES[name]
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="loss"))
    scores = g.input("scores", ir.DataType.DOUBLE, ("N", 4))
    g.output(write_objective(g, {"scores": scores}, {"scores": loss}).loss, "loss")
    found = Interpreter(g.graph).run({"scores": ARRAYS["scores"], "target": target})["loss"]
    theirs = request.getfixturevalue(library)["losses"][name]
    # Keras clips probabilities at 1e-7
    assert float(found) == pytest.approx(theirs, rel=1e-5 if library == "keras" else 1e-7)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_samples_and_classes_mean_what_keras_means(name: str, keras: dict[str, Any]) -> None:
    case, theirs = WEIGHTED[name], keras["weighted"][name]
    x, units = ARRAYS["scores"].astype(np.float32), case["units"]
    model = own_keras.Sequential(
        [own_keras.Input((x.shape[1],)), own_keras.layers.Dense(units, case["activation"])]
    )
    start = np.full((x.shape[1], units), 0.1) * np.arange(1, units + 1)
    model.set_weights([start, np.zeros(units)])
    model.compile(own_keras.optimizers.SGD(0.1), case["loss"])
    history = model.fit(
        x, ARRAYS[case["targets"]], batch_size=8, epochs=2, shuffle=False, verbose=0,
        class_weight=case.get("class_weight"),
        sample_weight=ARRAYS["sample_weight"] if case["sample_weight"] else None,
    )  # fmt: skip
    np.testing.assert_allclose(history.history["loss"], theirs["loss"], rtol=1e-5)
    for ours, expected in zip(model.get_weights(), theirs["weights"], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_have_keras_values(name: str, keras: dict[str, Any]) -> None:
    metric = create_metric(name)
    targets = ARRAYS["real"] if name in ("mae", "mse", "rmse", "r2") else LABELS
    for rows in (slice(0, 7), slice(7, None)):
        metric.update(ARRAYS["scores"][rows], targets[rows])
    assert metric.result() == pytest.approx(keras["metrics"][name], rel=1e-6)


@pytest.mark.parametrize("name", DRAWN)
def test_initializers_draw_from_keras_distributions(name: str, keras: dict[str, Any]) -> None:
    fans = initializers.Fans(300, 1000)
    values = initializers.resolve(name).draw(
        initializers.generator(0, "p"), (1000, 300), fans, np.dtype(np.float64)
    )
    mean, deviation, quantile = keras["initializers"][name]
    assert values.mean() == pytest.approx(mean, abs=0.02 * deviation)
    assert values.std() == pytest.approx(deviation, rel=0.01)
    # Keras leaves a few in a million beyond the cut
    assert np.quantile(np.abs(values), 0.999) == pytest.approx(quantile, rel=0.02)


def test_nothing_was_left_out() -> None:
    assert {type(loss).__name__ for loss, _ in LOSSES.values()} == {
        cls.__name__
        for cls in vars(losses).values()
        if isinstance(cls, type) and cls.__name__ in losses.__all__
    } - {"Loss", "FunctionLoss"}
    assert {type(optimizer) for optimizer, _, _ in UPDATES.values()} == set(OPTIMIZERS)
