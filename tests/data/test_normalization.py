from __future__ import annotations

import json

import numpy as np
import pytest

from onward.data import Dataset, Normalization
from onward.errors import ConfigError, DataError


def test_images_per_channel() -> None:
    images = (
        np.random.default_rng(0).normal([[[5]], [[-2]]], [[[3]], [[0.5]]], (5000, 2, 4, 4)).astype(np.float32)
    )
    data = Dataset({"image": images})
    fitted = Normalization.fit(data)
    np.testing.assert_allclose(fitted.mean, images.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(fitted.std, images.std(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6)
    result = fitted.apply_to(data).inputs["image"]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.mean(axis=(0, 2, 3), dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(axis=(0, 2, 3), dtype=np.float64), 1, rtol=1e-5)


def test_features_and_a_constant_one() -> None:
    features = np.float32([[1, 0.1], [3, 0.1], [5, 0.1]])
    fitted = Normalization.fit(Dataset({"features": features, "ids": np.arange(3)}))
    assert fitted.std[1] == 1
    result = fitted.apply(features)
    np.testing.assert_allclose(result[:, 0], [-np.sqrt(1.5), 0, np.sqrt(1.5)], rtol=1e-6)
    np.testing.assert_array_equal(result[:, 1], 0)


def test_other_parts_are_normalised_by_the_training_part() -> None:
    train, test = Dataset({"x": np.float32([[0], [2]])}), Dataset({"x": np.float32([[9]])})
    assert Normalization.fit(train).apply_to(test).inputs["x"].tolist() == [[8]]


def test_json_round_trip_without_loss() -> None:
    fitted = Normalization.fit(Dataset({"x": np.random.default_rng(1).random((30, 3), np.float32)}))
    again = Normalization.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again.input == "x"
    assert again.mean.tobytes() == fitted.mean.tobytes()
    assert again.std.tobytes() == fitted.std.tobytes()


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"input": "x", "mean": [1]},
        {"input": "x", "mean": [1], "std": [0]},
        {"input": "x", "mean": [1], "std": [1, 2]},
        {"input": "x", "mean": ["a"], "std": [1]},
        {"input": "x", "mean": [float("nan")], "std": [1]},
        {"input": 3, "mean": [1], "std": [1]},
        {"input": "x", "mean": 1, "std": 1},
    ],
)
def test_other_json_is_refused(content: object) -> None:
    with pytest.raises(DataError, match="normalisation"):
        Normalization.from_json(content)


def test_inputs_that_cannot_be_normalised() -> None:
    two = Dataset(
        {"a": np.zeros((2, 1)), "b": np.zeros((2, 1)), "c": np.zeros((2, 1), int), "d": np.zeros(2)}
    )
    with pytest.raises(ConfigError, match="name the one"):
        Normalization.fit(two)
    with pytest.raises(ConfigError, match="no input 'z'"):
        Normalization.fit(two, "z")
    for name in ("c", "d"):
        with pytest.raises(DataError, match=f"input '{name}'"):
            Normalization.fit(two, name)
    fitted = Normalization.fit(two, "a")
    with pytest.raises(DataError, match="1 channels"):
        fitted.apply(np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match="no input 'a'"):
        fitted.apply_to(Dataset({"b": np.zeros((2, 1))}))
