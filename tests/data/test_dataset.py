from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onward.data import Dataset
from onward.errors import DataError


def test_keeps_inputs_targets_and_classes() -> None:
    data = Dataset({"x": np.ones((3, 2), np.float32)}, np.array([0, 1, 1], np.uint8), ("a", "b"), "d")
    assert len(data) == 3
    assert data.targets is not None
    assert data.targets.dtype == np.int64
    assert data.class_count == 2
    assert data.text_inputs == ()


def test_is_read_only_and_leaves_the_callers_array_writable() -> None:
    mine = np.zeros((2, 2), np.float32)
    data = Dataset({"x": mine}, np.array([0, 1]))
    with pytest.raises(ValueError, match="read-only"):
        data.inputs["x"][0, 0] = 1
    mine[0, 0] = 1
    with pytest.raises(AttributeError):
        data.name = "other"  # type: ignore[misc]


def test_one_dimensional_regression_targets_become_a_column() -> None:
    data = Dataset({"x": np.ones((3, 2))}, np.array([1, 2, 3]), task="regression")
    assert data.targets is not None
    assert data.targets.shape == (3, 1)
    assert data.targets.dtype == np.float32
    assert data.class_count is None


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "message"),
    [
        ({}, None, {}, "no inputs"),
        ({"x": np.zeros((0, 2))}, None, {}, "'d' is empty"),
        ({"x": np.zeros((3, 2)), "z": np.zeros((2, 2))}, None, {}, "'x': 3, 'z': 2"),
        ({"x": np.zeros((3, 2))}, np.zeros(2, int), {}, "'x': 3, 'targets': 2"),
        ({"x": np.array([[0.0, 1], [2, np.nan]])}, None, {}, r"input 'x', row 1, element \[1\]: nan"),
        ({"x": np.array([1.0, 2, -np.inf], np.float16)}, None, {}, "input 'x', row 2: -inf"),
        ({"x": np.float32(3)}, None, {}, "scalar"),
        ({"x": np.zeros(2, complex)}, None, {}, "complex128"),
        ({"x": np.array(["a", 3], object)}, None, {}, "row 1: int where text"),
        ({"x": np.array([["a"]], object)}, None, {}, r"shape \[N\]"),
        ({"x": np.zeros(2)}, np.array([0.0, 1.0]), {}, "task='regression'"),
        ({"x": np.zeros(2)}, np.array(["a", "b"]), {}, "must be integers"),
        ({"x": np.zeros(3)}, np.array([0, 2, 1]), {"classes": ("a", "b")}, "row 1: label 2 .* 0 to 1"),
        ({"x": np.zeros(3)}, np.array([0, 1, -1]), {}, "row 2: label -1"),
        ({"x": np.zeros(1)}, np.array([2**63], np.uint64), {}, "out of range"),
        ({"x": np.zeros(2)}, np.array([[1.0], [np.inf]]), {"task": "regression"}, "targets, row 1"),
        ({"x": np.zeros(2)}, np.array(["a", "b"]), {"task": "regression"}, "needs numbers"),
        ({"x": np.zeros(2)}, None, {"task": "ranking"}, "'ranking'"),
        ({"x": np.zeros(2)}, None, {"groups": np.zeros((2, 1), int)}, "groups"),
    ],
)
def test_refuses_what_cannot_be_trained_on(
    inputs: dict[str, np.ndarray], targets: np.ndarray | None, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(inputs, targets, name="d", **options)  # type: ignore[arg-type]


def test_finds_nan_beyond_the_first_chunk() -> None:
    array = np.zeros((3, (1 << 22) + 1), np.float16)
    array[2, 7] = np.nan
    with pytest.raises(DataError, match=r"row 2, element \[7\]"):
        Dataset({"x": array})


def test_take_picks_rows_in_order_and_checks_indices() -> None:
    data = Dataset({"x": np.arange(4.0)}, np.array([3, 2, 1, 0]), groups=np.array([5, 6, 7, 8]))
    part = data.take([2, 0])
    assert part.inputs["x"].tolist() == [2, 0]
    assert part.targets is not None
    assert part.groups is not None
    assert part.targets.tolist() == [1, 3]
    assert part.groups.tolist() == [7, 5]
    for bad in ([], [4], [-1], [[0]], [True, False, True, False]):
        with pytest.raises(DataError):
            data.take(bad)


def test_digest_says_whether_data_are_equal() -> None:
    x, y = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([0, 1, 0])
    base = Dataset({"a": x, "b": y}, y).digest()
    assert len(base) == 64
    assert Dataset({"b": y, "a": x}, y, name="other").digest() == base
    assert Dataset({"a": x.astype(">f4"), "b": y}, y).digest() == base
    changed = x.copy()
    changed[2, 1] += 1
    others = [
        Dataset({"a": changed, "b": y}, y),
        Dataset({"a": x.astype(np.float64), "b": y}, y),
        Dataset({"c": x, "b": y}, y),
        Dataset({"a": x.reshape(3, 1, 2), "b": y}, y),
        Dataset({"a": x, "b": y}, 1 - y),
        Dataset({"a": x, "b": y}),
        Dataset({"a": x, "b": y}, y, ("no", "yes")),
    ]
    digests = {data.digest() for data in others}
    assert base not in digests
    assert len(digests) == len(others)


def test_digest_of_text_separates_samples() -> None:
    def digest(*texts: str) -> str:
        return Dataset({"text": np.array(texts, dtype=object)}).digest()

    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab", "c") == Dataset({"text": np.array(["ab", "c"])}).digest()


def test_memory_mapped_input_stays_on_disk(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.save(tmp_path / "x.npy", array)
    data = Dataset({"x": np.load(tmp_path / "x.npy", mmap_mode="r")}, np.zeros(6, int))
    assert isinstance(data.inputs["x"], np.memmap)
    part = data.take([5, 1])
    assert not isinstance(part.inputs["x"], np.memmap)
    np.testing.assert_array_equal(part.inputs["x"], array[[5, 1]])
    assert data.digest() == Dataset({"x": array}, np.zeros(6, int)).digest()


def test_numbers_in_objects_are_numbers() -> None:
    mixed = np.array([[1, 2.5, True], [np.float32(3), 4, False]], dtype=object)
    found = Dataset({"x": mixed}, np.array([0, 1])).inputs["x"]
    assert found.dtype == np.float64
    assert found.tolist() == [[1, 2.5, 1], [3, 4, 0]]
    with pytest.raises(DataError, match="holds float, str side by side; give numbers, or a table"):
        Dataset({"x": np.array([[1.0, "a"], [2.0, "b"]], dtype=object)}, np.array([0, 1]))
    with pytest.raises(DataError, match="text must have shape"):
        Dataset({"x": np.array([["a", "b"]], dtype=object)}, np.array([0]))
