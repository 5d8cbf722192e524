"""Estimators keep scikit-learn's contract, and what they export answers as they do."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

from onward import nn
from onward.errors import ConfigError
from onward.sklearn import OnwardClassifier, OnwardRegressor

ORT = pytest.importorskip("onnxruntime")


EXCLUDED = {
    "check_sample_weight_equivalence_on_dense_data": "samples repeated fall into other batches than samples "
    "weighted; at one batch an epoch both are equal, see test_a_weight_is_how_often_the_sample_is_there",
}


def _witness(path: Path, X: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ORT.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: X.astype(np.float32)})[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [OnwardClassifier, OnwardRegressor])
def test_every_check_of_scikit_learn_passes(estimator: type[Any]) -> None:
    results = check_estimator(estimator(), on_fail=None, expected_failed_checks=EXCLUDED)
    assert len(results) > 40
    assert [(r["check_name"], str(r["exception"])) for r in results if r["status"] == "failed"] == []


def test_a_weight_is_how_often_the_sample_is_there() -> None:
    X, y = load_iris(return_X_y=True)
    repeats = np.random.default_rng(0).integers(0, 3, len(y))
    copies = np.repeat(np.arange(len(y)), repeats)
    for estimator, targets in ((OnwardClassifier, y), (OnwardRegressor, X[:, 2])):
        options = {"hidden": (8,), "epochs": 20, "batch_size": 1000, "random_state": 0}
        weighted = estimator(**options).fit(X[:, :2], targets, sample_weight=repeats)
        copied = estimator(**options).fit(X[copies, :2], targets[copies])
        method = "predict_proba" if estimator is OnwardClassifier else "predict"
        answers = [getattr(model, method)(X[:, :2]) for model in (weighted, copied)]
        np.testing.assert_allclose(*answers, rtol=1e-3, atol=1e-4)
        with pytest.raises(ValueError, match=r"non-zero|not all of them 0"):
            estimator(**options).fit(X, targets, sample_weight=np.zeros(len(y)))


def test_a_classifier_learns_and_its_file_answers_alike(tmp_path: Path) -> None:
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    train, test, train_names, test_names = train_test_split(X, names, random_state=0, stratify=names)
    model = OnwardClassifier(hidden=(16,), epochs=60, random_state=0).fit(train, train_names)
    assert model.score(test, test_names) > 0.9
    model.export(tmp_path / "iris.onnx")
    np.testing.assert_allclose(_witness(tmp_path / "iris.onnx", test), model.predict_proba(test), atol=1e-5)


def test_a_regressor_answers_in_the_units_of_its_targets(tmp_path: Path) -> None:
    X, y = load_diabetes(return_X_y=True)
    model = OnwardRegressor(hidden=(16,), epochs=40, random_state=0).fit(X[:350], y[:350])
    assert model.score(X[350:], y[350:]) > 0.35
    assert model.predict(X[350:]).mean() == pytest.approx(y[350:].mean(), rel=0.15)
    model.export(tmp_path / "diabetes.onnx")
    found = _witness(tmp_path / "diabetes.onnx", X[350:])[:, 0]
    np.testing.assert_allclose(found, model.predict(X[350:]), rtol=1e-4)


def test_the_same_random_state_gives_the_same_bits() -> None:
    X, y = load_iris(return_X_y=True)
    first, second = (OnwardClassifier(epochs=3, random_state=7).fit(X, y).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_partial_fit_goes_on_after_pickling_as_if_it_had_not_been() -> None:
    X, y = load_iris(return_X_y=True)
    model = OnwardClassifier(hidden=(8,), random_state=0)
    model.partial_fit(X, y, classes=[0, 1, 2])
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(model.predict_proba(X), other.predict_proba(X))
    model.partial_fit(X, y)
    other.partial_fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), other.predict_proba(X))


def test_partial_fit_keeps_the_optimizer_s_moments() -> None:
    """As many single passes as epochs: not the same order of samples, but the same quality."""
    X, y = load_iris(return_X_y=True)
    model = OnwardClassifier(hidden=(16,), random_state=0)
    for _ in range(40):
        model.partial_fit(X, y, classes=[0, 1, 2])
    assert model.n_iter_ == 40
    assert model.score(X, y) > 0.9


def test_a_label_that_was_not_announced_is_refused() -> None:
    X, y = load_iris(return_X_y=True)
    model = OnwardClassifier(hidden=(8,)).partial_fit(X[:100], y[:100], classes=[0, 1])
    with pytest.raises(ValueError, match="not among the classes"):
        model.partial_fit(X, y)


def test_searches_pipelines_and_cross_validation() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    pipeline = make_pipeline(MinMaxScaler(), OnwardClassifier(hidden=(8,), epochs=15, random_state=0))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.93
    search = GridSearchCV(
        OnwardClassifier(hidden=(8,), epochs=10, random_state=0), {"learning_rate": [1e-5, 0.01]}, cv=3
    ).fit(X, y)
    assert search.best_params_ == {"learning_rate": 0.01}


def test_several_labels_a_sample() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 5))
    Y = (X[:, :3] > 0).astype(int)
    model = OnwardClassifier(hidden=(16,), epochs=30, random_state=0).fit(X[:300], Y[:300])
    assert model.predict(X[300:]).shape == (100, 3)
    assert (model.predict(X[300:]) == Y[300:]).mean() > 0.93


def test_balanced_weights_find_the_rare_class() -> None:
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(0, 1, (380, 2)), rng.normal(1.5, 1, (20, 2))])
    y = np.repeat([0, 1], [380, 20])
    plain, balanced = (
        OnwardClassifier(hidden=(8,), epochs=30, random_state=0, class_weight=w).fit(X, y)
        for w in (None, "balanced")
    )
    assert (balanced.predict(X)[y == 1] == 1).mean() > (plain.predict(X)[y == 1] == 1).mean() + 0.2


def test_a_convolutional_network_of_one_s_own() -> None:
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 1, 8, 8)

    def network(shape: tuple[int, ...], units: int) -> nn.Network:
        layers = [nn.Conv2D(8, 3, activation="relu"), nn.Flatten(), nn.Dense(units)]
        return nn.Sequential(layers, input_shape=shape)

    model = OnwardClassifier(network, epochs=6, random_state=0).fit(X[:1400], y[:1400])
    assert model.score(X[1400:], y[1400:]) > 0.88


def test_a_network_that_does_not_fit_the_classes_is_refused() -> None:
    X, y = load_iris(return_X_y=True)
    network = nn.Sequential([nn.Dense(7)], input_shape=(4,))
    with pytest.raises(ConfigError, match="gives 7 numbers for a sample where 3 are needed"):
        OnwardClassifier(network).fit(X, y)


def test_early_stopping_ends_before_the_last_epoch() -> None:
    X, y = load_iris(return_X_y=True)
    model = OnwardClassifier(epochs=500, early_stopping=True, patience=3, random_state=0).fit(X, y)
    assert model.n_iter_ < 500


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": 0}, "epochs"), ({"batch_size": 1.5}, "batch_size"), ({"patience": -1}, "patience")],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=message):
        OnwardClassifier(**options).fit(X, y)
