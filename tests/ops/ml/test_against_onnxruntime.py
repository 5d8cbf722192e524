"""Operators of `ai.onnx.ml` against onnxruntime, with random parameters, in both engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from tests.ops.ml.models import FLOAT, INT64, STRING, leaves, model, random_trees, tensor, weighted

from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.graph import Array
from onward.model import from_bytes

_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def ours(content: bytes, feed: Mapping[str, Array]) -> list[list[Array]]:
    """Outputs in both engines."""
    loaded = from_bytes(content)
    engines = (Interpreter(loaded.graph), CompiledEngine(loaded))
    return [list(engine.run(dict(feed)).values()) for engine in engines]


def compare(
    op_type: str,
    inputs: Sequence[Array],
    attributes: Mapping[str, Any],
    kinds: Sequence[int] = (FLOAT,),
    version: int = 3,
    atol: float = 0.0,
    rtol: float = 1e-6,
) -> None:
    """Both engines give what onnxruntime does: labels exactly, scores within float32 rounding."""
    names = [f"x{i}" for i in range(len(inputs))]
    outputs = [f"y{i}" for i in range(len(kinds))]
    feed = dict(zip(names, inputs, strict=True))
    content = model(
        [(op_type, names, outputs, attributes)], feed, dict(zip(outputs, kinds, strict=True)), version
    )
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = session.run(None, feed)
    for got in ours(content, feed):
        for y, want in zip(got, expected, strict=True):
            assert y.dtype == want.dtype
            assert y.shape == want.shape
            if want.dtype.kind == "f":
                np.testing.assert_allclose(y, want, rtol, atol)
            else:
                assert y.tolist() == want.tolist()


def _x(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _grid(rows: int, features: int, dtype: Any = np.float32, seed: int = 1) -> Array:
    """Values that meet splits exactly; NaN among floats."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(-5, 6, (rows, features)) / 4).astype(dtype)
    if np.dtype(dtype).kind == "f":
        x[rng.random(x.shape) < 0.1] = np.nan
    return x


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
@pytest.mark.parametrize("shape", [(5, 3), (3,)])
def test_scaler(dtype: Any, shape: tuple[int, ...]) -> None:
    x = (10 * _x(*shape)).astype(dtype)
    compare("Scaler", [x], {"offset": [0.5, -1.25, 3.1], "scale": [2.0, 0.3, -1.7]}, version=1)
    compare("Scaler", [x], {"offset": [0.3], "scale": [0.7]}, version=1)


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
def test_normalizer(norm: str, dtype: Any) -> None:
    x = (3 * _x(6, 4)).astype(dtype)
    x[2] = 0
    compare("Normalizer", [x], {"norm": norm}, version=1)
    compare("Normalizer", [x[0]], {"norm": norm}, version=1)


def test_imputer() -> None:
    x = _grid(7, 3)
    floats = {"imputed_value_floats": [0.5, 1.5, 2.5]}
    compare("Imputer", [x], {**floats, "replaced_value_float": float("nan")}, version=1)
    compare("Imputer", [x], {**floats, "replaced_value_float": 0.25}, version=1)
    compare("Imputer", [x], {"imputed_value_floats": [9.0], "replaced_value_float": 0.25}, version=1)
    whole = np.array([[1, -1], [2, -1]])
    compare(
        "Imputer", [whole], {"imputed_value_int64s": [7, 8], "replaced_value_int64": -1}, [INT64], version=1
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_one_hot_encoder(dtype: Any) -> None:
    x = np.array([[1, 4], [2, 9]], dtype)
    compare("OneHotEncoder", [x], {"cats_int64s": [4, 1, 2]}, version=1)
    compare("OneHotEncoder", [x], {"cats_int64s": [4, 1, 2, 9], "zeros": 0}, version=1)


def test_one_hot_encoder_of_strings() -> None:
    x = np.array([["a", "b"], ["zz", "a"]], object)
    compare("OneHotEncoder", [x], {"cats_strings": ["b", "a"]}, version=1)


_NAN = float("nan")
_KEYS = {
    "strings": (["a", "b", "a", "d"], np.array(["b", "a", "x"], object)),
    "int64s": ([3, 5, 3, -1], np.array([5, 3, 4])),
    "floats": ([1.5, _NAN, 1.5, 2.0], np.array([1.5, _NAN, 7.0], np.float32)),
}
_VALUES = {
    "strings": (["p", "q", "r", "s"], STRING),
    "int64s": ([10, 20, 30, 40], INT64),
    "floats": ([0.1, 0.2, 0.3, 0.4], FLOAT),
}


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("keys", _KEYS)
@pytest.mark.parametrize("values", _VALUES)
def test_label_encoder(keys: str, values: str, version: int) -> None:
    content, x = _KEYS[keys]
    outcome, kind = _VALUES[values]
    attributes = {f"keys_{keys}": content, f"values_{values}": outcome}
    defaults = {"default_string": "none", "default_int64": 99, "default_float": 0.75}
    compare("LabelEncoder", [x], {**attributes, **defaults}, [kind], version)
    compare("LabelEncoder", [x], attributes, [kind], version)


def test_label_encoder_1() -> None:
    classes = {"classes_strings": ["a", "b"], "default_int64": -5, "default_string": "none"}
    compare("LabelEncoder", [np.array(["b", "c"], object)], classes, [INT64], version=1)
    compare("LabelEncoder", [np.array([1, 0, 7, -1])], classes, [STRING], version=1)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_label_encoder_of_tensors(dtype: Any) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    attributes = {
        "keys_tensor": tensor(np.array([3, 1, 2], dtype)),
        "values_tensor": tensor(np.array([30, 10, 20], dtype)),
        "default_tensor": tensor(np.array([7], dtype)),
    }
    compare("LabelEncoder", [np.array([1, 2, 9], dtype)], attributes, [kind], version=4)


def test_category_mapper() -> None:
    cats = {"cats_strings": ["a", "b"], "cats_int64s": [4, 6]}
    compare("CategoryMapper", [np.array(["b", "c"], object)], {**cats, "default_int64": 9}, [INT64], 1)
    compare("CategoryMapper", [np.array([6, 5])], cats, [STRING], 1)


def test_feature_vectorizer() -> None:
    compare("FeatureVectorizer", [_x(3, 2), _x(3, 1, seed=1)], {"inputdimensions": [2, 1]}, version=1)
    compare("FeatureVectorizer", [_x(3, 2), _x(3, 3, seed=1)], {"inputdimensions": [3, 1]}, version=1)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_array_feature_extractor(shape: tuple[int, ...]) -> None:
    compare("ArrayFeatureExtractor", [_x(*shape), np.array([2, 0, 2])], {}, version=1)


def test_binarizer() -> None:
    compare("Binarizer", [_x(5, 3)], {"threshold": 0.25}, version=1)


@pytest.mark.parametrize("how", _TRANSFORMS)
def test_linear_regressor(how: str) -> None:
    x = np.abs(_x(5, 3))
    for targets in (1, 3):
        weights = [float(w) for w in np.abs(_x(3 * targets, seed=2)) / 20]
        attributes = {"coefficients": weights, "intercepts": [0.2] * targets, "targets": targets}
        content = {**attributes, "post_transform": how}
        compare("LinearRegressor", [x], content, version=1, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("how", _TRANSFORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_linear_classifier(how: str, dtype: Any) -> None:
    x = (3 * np.abs(_x(9, 3))).astype(dtype)
    weights = [float(w) for w in np.abs(_x(9, seed=3)) / 20]
    attributes = {"coefficients": weights, "intercepts": [0.2, 0.1, 0.15], "post_transform": how}
    close = 2e-4 if how == "PROBIT" else 1e-5  # a difference of nearly equal roots about 1 / 2
    for labels, kind in (
        ({"classlabels_ints": [3, 5, 9]}, INT64),
        ({"classlabels_strings": ["a", "b", "c"]}, STRING),
    ):
        compare("LinearClassifier", [x], {**attributes, **labels}, [kind, FLOAT], 1, atol=1e-6, rtol=close)


@pytest.mark.parametrize("how", _TRANSFORMS[:4])
def test_linear_classifier_of_one_score(how: str) -> None:
    attributes = {"coefficients": [0.4, -0.7], "intercepts": [0.1], "post_transform": how}
    compare(
        "LinearClassifier", [_x(9, 2)], {**attributes, "classlabels_ints": [4, 2]}, [INT64, FLOAT], 1, 1e-6
    )


_KERNELS = {
    "LINEAR": [0.0, 0.0, 0.0],
    "POLY": [0.5, 0.3, 3.0],
    "RBF": [0.4, 0.0, 3.0],
    "SIGMOID": [0.2, 0.1, 0.0],
}


@pytest.mark.parametrize("kernel", _KERNELS)
def test_svm_regressor(kernel: str) -> None:
    attributes = {
        "coefficients": [float(w) for w in _x(4, seed=5)],
        "support_vectors": [float(w) for w in _x(12, seed=6)],
        "n_supports": 4,
        "rho": [0.3],
        "kernel_type": kernel,
        "kernel_params": _KERNELS[kernel],
    }
    for one_class in (0, 1):
        compare("SVMRegressor", [_x(8, 3)], {**attributes, "one_class": one_class}, version=1, atol=1e-5)
    linear = {"coefficients": [0.1, 0.2, 0.3], "rho": [0.3], "n_supports": 0, "kernel_params": [0.0] * 3}
    compare("SVMRegressor", [_x(8, 3)], linear, version=1, atol=1e-6)


@pytest.mark.parametrize("kernel", _KERNELS)
@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("probabilities", [False, True])
def test_svm_classifier(kernel: str, classes: int, probabilities: bool) -> None:
    rng = np.random.default_rng(classes)
    sizes, pairs = [int(n) for n in rng.integers(1, 4, classes)], classes * (classes - 1) // 2
    total = sum(sizes)
    attributes: dict[str, Any] = {
        "coefficients": [float(w) for w in rng.standard_normal((classes - 1) * total)],
        "support_vectors": [float(w) for w in rng.standard_normal(3 * total)],
        "vectors_per_class": sizes,
        "rho": [float(w) for w in rng.standard_normal(pairs)],
        "kernel_type": kernel,
        "kernel_params": _KERNELS[kernel],
        "classlabels_ints": list(range(5, 5 + classes)),
    }
    if probabilities:
        attributes["prob_a"] = [float(w) for w in -rng.random(pairs) - 0.5]
        attributes["prob_b"] = [float(w) for w in rng.standard_normal(pairs) / 4]
    transforms = ("NONE", "LOGISTIC", "SOFTMAX") if kernel == "RBF" else ("NONE",)
    for how in transforms:
        content = {**attributes, "post_transform": how}
        compare("SVMClassifier", [_x(20, 3)], content, [INT64, FLOAT], 1, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("how", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_linear_svm_classifier(classes: int, how: str) -> None:
    attributes = {
        "coefficients": [float(w) for w in _x(3 * classes, seed=8)],
        "rho": [0.1],
        "kernel_params": [0.0, 0.0, 0.0],
        "classlabels_strings": ["a", "b", "c"][:classes],
        "post_transform": how,
    }
    compare("SVMClassifier", [_x(20, 3)], attributes, [STRING, FLOAT], 1, atol=1e-6, rtol=1e-5)


_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


@pytest.mark.parametrize("modes", [_MODES[:1], _MODES], ids=["leq", "mixed"])
@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tree_ensemble_regressor(modes: Sequence[str], aggregate: str, targets: int, dtype: Any) -> None:
    rng = np.random.default_rng(17)
    trees = random_trees(rng, 7, 4, modes)
    weights = [
        (t, n, int(k), float(np.float32(rng.standard_normal())))
        for t, n in leaves(trees)
        for k in rng.permutation(targets)[: int(rng.integers(1, targets + 1))]
    ]
    attributes = {**trees, **weighted("target", weights), "n_targets": targets}
    attributes["aggregate_function"] = aggregate
    x = _grid(40, 4, dtype)
    base = [0.25, -0.5, 1.0][:targets]
    compare("TreeEnsembleRegressor", [x], attributes, atol=1e-6, rtol=1e-5)
    how = {"SUM": "LOGISTIC", "AVERAGE": "SOFTMAX", "MIN": "SOFTMAX_ZERO", "MAX": "NONE"}[aggregate]
    content = {**attributes, "post_transform": how, "base_values": base}
    compare("TreeEnsembleRegressor", [x], content, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize(
    ("how", "dtype"),
    [("NONE", np.float32), ("LOGISTIC", np.float64), ("SOFTMAX", np.float32), ("SOFTMAX_ZERO", np.int64)],
)
@pytest.mark.parametrize("each", ["all", "one", "some"])
def test_tree_ensemble_classifier(classes: int, how: str, each: str, dtype: Any) -> None:
    rng = np.random.default_rng(classes)
    trees = random_trees(rng, 2 * classes, 4, _MODES)
    weights = []
    for t, n in leaves(trees):
        named = {"all": range(classes), "one": [t % classes], "some": [int(rng.integers(classes))]}[each]
        weights += [(t, n, k, float(np.float32(rng.standard_normal() - 0.5))) for k in named]
    attributes = {**trees, **weighted("class", weights), "post_transform": how}
    x = _grid(40, 4, dtype)
    for base in ([], [float(b) for b in rng.standard_normal(classes)]):
        content = {**attributes, **({"base_values": base} if base else {})}
        for labels, kind in (
            ({"classlabels_int64s": list(range(7, 7 + classes))}, INT64),
            ({"classlabels_strings": [f"c{i}" for i in range(classes)]}, STRING),
        ):
            compare("TreeEnsembleClassifier", [x], {**content, **labels}, [kind, FLOAT], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("how", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(("named", "base"), [(0, []), (0, [0.1]), (1, [])])
def test_tree_ensemble_of_one_of_two_classes(how: str, named: int, positive: bool, base: list[float]) -> None:
    rng = np.random.default_rng(3)
    trees = random_trees(rng, 3, 4, _MODES[:1])
    weights = [
        (t, n, named, float(np.float32(abs(w) / 3 if positive else w)))
        for (t, n), w in zip(leaves(trees), rng.standard_normal(len(leaves(trees))), strict=True)
    ]
    attributes = {
        **trees,
        **weighted("class", weights),
        "classlabels_int64s": [4, 8],
        "post_transform": how,
        **({"base_values": base} if base else {}),
    }
    compare("TreeEnsembleClassifier", [_grid(40, 4)], attributes, [INT64, FLOAT], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("aggregate", [0, 1, 2, 3])
def test_tree_ensemble_5(dtype: Any, aggregate: int) -> None:
    nan = np.nan
    attributes = {
        "aggregate_function": aggregate,
        "membership_values": tensor(np.array([1.25, 0.5, nan, -1, nan, 0.25, 0, 1, nan], dtype)),
        "nodes_modes": tensor(np.array([0, 6, 6, 6, 1], np.uint8)),
        "nodes_splits": tensor(np.array([0.25, 0, 0, 0, 0.5], dtype)),
        "nodes_featureids": [0, 1, 1, 0, 1],
        "nodes_truenodeids": [1, 0, 2, 3, 1],
        "nodes_trueleafs": [0, 1, 1, 1, 1],
        "nodes_falsenodeids": [2, 1, 3, 0, 0],
        "nodes_falseleafs": [0, 1, 0, 1, 1],
        "leaf_targetids": [0, 1, 2, 1],
        "leaf_weights": tensor(np.array([1.5, -2.5, 3.25, 0.125], dtype)),
        "tree_roots": [0, 4],
        "n_targets": 3,
    }
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    compare("TreeEnsemble", [_grid(40, 2, dtype)], attributes, [kind], version=5)
