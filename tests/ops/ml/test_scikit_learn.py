"""Fitted scikit-learn estimators as files of `ai.onnx.ml`: both engines predict what they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.ops.ml.models import FLOAT, INT64, fitted_trees, model, weighted

from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.graph import Array
from onward.model import from_bytes

pytest.importorskip("sklearn")
from sklearn.datasets import load_iris
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR


def _iris() -> tuple[Array, Array]:
    data = load_iris()
    return data.data.astype(np.float32), data.target


def _run(content: bytes, x: Array) -> list[dict[str, Array]]:
    loaded = from_bytes(content)
    return [dict(e.run({"x": x})) for e in (Interpreter(loaded.graph), CompiledEngine(loaded))]


def _floats(x: Any) -> list[float]:
    return [float(v) for v in np.asarray(x).reshape(-1)]


def test_random_forest() -> None:
    x, y = _iris()
    fitted = RandomForestClassifier(12, random_state=0).fit(x, y)
    share = 1 / len(fitted.estimators_)
    said = [
        t.tree_.value[:, 0] / t.tree_.value[:, 0].sum(1, keepdims=True) * share for t in fitted.estimators_
    ]
    nodes, weights = fitted_trees(fitted.estimators_, said)
    attributes = {**nodes, **weighted("class", weights), "classlabels_int64s": [0, 1, 2]}
    content = model(
        [("TreeEnsembleClassifier", ["x"], ["y", "z"], attributes)], {"x": x}, {"y": INT64, "z": FLOAT}
    )
    for got in _run(content, x):
        np.testing.assert_allclose(got["z"], fitted.predict_proba(x), atol=1e-6)
        assert got["y"].tolist() == fitted.predict(x).tolist()


def test_gradient_boosting() -> None:
    x, _ = _iris()
    fitted = GradientBoostingRegressor(n_estimators=20, random_state=0).fit(x[:, :3], x[:, 3])
    trees = [t[0] for t in fitted.estimators_]
    nodes, weights = fitted_trees(trees, [t.tree_.value[:, 0] * fitted.learning_rate for t in trees])
    attributes = {**nodes, **weighted("target", weights), "n_targets": 1}
    attributes["base_values"] = _floats(fitted.init_.constant_)
    content = model([("TreeEnsembleRegressor", ["x"], ["z"], attributes)], {"x": x[:, :3]}, {"z": FLOAT})
    for got in _run(content, x[:, :3]):
        np.testing.assert_allclose(got["z"][:, 0], fitted.predict(x[:, :3]), rtol=1e-5)


def test_scaled_logistic_regression() -> None:
    x, y = _iris()
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    scaler, linear = fitted[0], fitted[1]
    nodes = [
        ("Scaler", ["x"], ["s"], {"offset": _floats(scaler.mean_), "scale": _floats(1 / scaler.scale_)}),
        (
            "LinearClassifier",
            ["s"],
            ["y", "raw"],
            {
                "coefficients": _floats(linear.coef_),
                "intercepts": _floats(linear.intercept_),
                "classlabels_ints": [0, 1, 2],
                "post_transform": "SOFTMAX",
            },
        ),
        ("Normalizer", ["raw"], ["z"], {"norm": "L1"}),
    ]
    content = model(nodes, {"x": x}, {"y": INT64, "z": FLOAT}, version=1)
    for got in _run(content, x):
        np.testing.assert_allclose(got["z"], fitted.predict_proba(x), atol=2e-6)
        assert got["y"].tolist() == fitted.predict(x).tolist()


def test_support_vectors() -> None:
    x, y = _iris()
    fitted = SVC(gamma=0.5, decision_function_shape="ovo").fit(x, y)
    attributes = {
        "coefficients": _floats(fitted.dual_coef_),
        "support_vectors": _floats(fitted.support_vectors_),
        "vectors_per_class": [int(n) for n in fitted.n_support_],
        "rho": _floats(fitted.intercept_),
        "kernel_type": "RBF",
        "kernel_params": [0.5, 0.0, 3.0],
        "classlabels_ints": [0, 1, 2],
    }
    content = model([("SVMClassifier", ["x"], ["y", "z"], attributes)], {"x": x}, {"y": INT64, "z": FLOAT}, 1)
    for got in _run(content, x):
        np.testing.assert_allclose(got["z"], fitted.decision_function(x), atol=1e-5)
        assert got["y"].tolist() == fitted.predict(x).tolist()
    regressor = SVR(gamma=0.5).fit(x[:, :3], x[:, 3])
    attributes = {
        "coefficients": _floats(regressor.dual_coef_),
        "support_vectors": _floats(regressor.support_vectors_),
        "n_supports": len(regressor.support_vectors_),
        "rho": _floats(regressor.intercept_),
        "kernel_type": "RBF",
        "kernel_params": [0.5, 0.0, 3.0],
    }
    content = model([("SVMRegressor", ["x"], ["z"], attributes)], {"x": x[:, :3]}, {"z": FLOAT}, 1)
    for got in _run(content, x[:, :3]):
        np.testing.assert_allclose(got["z"][:, 0], regressor.predict(x[:, :3]), atol=1e-5)
