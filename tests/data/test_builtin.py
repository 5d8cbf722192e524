from __future__ import annotations

import sys

import numpy as np
import pytest

from onward.data import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from onward.errors import ConfigError


def test_digits_as_they_are_and_enlarged() -> None:
    small, large = load_digits(8), load_digits()
    raw, image = small.inputs["image"], large.inputs["image"]
    assert raw.shape == (1797, 1, 8, 8)
    assert image.shape == (1797, 1, 28, 28)
    assert image.dtype == raw.dtype == np.float32
    assert raw.min() == 0
    assert raw.max() == 1
    np.testing.assert_array_equal(image[:, :, 2:26, 2:26], np.kron(raw, np.ones((3, 3), np.float32)))
    assert image.sum(dtype=np.float64) == 9 * raw.sum(dtype=np.float64)
    assert large.classes == tuple("0123456789")


def test_digits_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="32"):
        load_digits(32)


@pytest.mark.parametrize(
    ("load", "shape", "classes"),
    [(load_iris, (150, 4), 3), (load_wine, (178, 13), 3), (load_breast_cancer, (569, 30), 2)],
)
def test_tables(load: object, shape: tuple[int, int], classes: int) -> None:
    data = load()  # type: ignore[operator]
    assert data.inputs["features"].shape == shape
    assert data.inputs["features"].dtype == np.float32
    assert len(data.classes) == classes
    assert set(np.unique(data.targets)) == set(range(classes))


def test_diabetes_is_a_regression_on_raw_features() -> None:
    data = load_diabetes()
    assert data.task == "regression"
    assert data.targets is not None
    assert data.targets.shape == (442, 1)
    assert data.inputs["features"][:, 0].max() == 79


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"onward\[data\]"):
        load_iris()
