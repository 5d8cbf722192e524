"""Comparing the outputs of two engines, and choosing which requests to check."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onward_server.dataplane.crosscheck import CheckRecorder, Comparison, Sampler, compare
from onward_server.model_settings import CrossCheckSettings, Tolerance

DEFAULT = CrossCheckSettings()
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.3, 0.05, 0.001])
def test_a_sampler_takes_its_share_evenly_and_begins_with_the_first(rate: float) -> None:
    sampler = Sampler(rate)
    chosen = [sampler.select() for _ in range(2000)]
    assert chosen[0]
    assert sum(chosen) == round(2000 * rate)
    gaps = np.diff(np.flatnonzero(chosen))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_equal_outputs_agree() -> None:
    outputs = {"y": np.array([1.0, NAN, INF, -INF], dtype=np.float32), "z": np.array([1, 2])}
    assert compare(outputs, {k: v.copy() for k, v in outputs.items()}, DEFAULT) == Comparison("")


@pytest.mark.parametrize(
    ("found", "wanted"), [(NAN, 1.0), (1.0, NAN), (INF, -INF), (INF, 1e30), (-INF, NAN), (1.0, INF)]
)
def test_nan_and_infinity_agree_with_themselves_only(found: float, wanted: float) -> None:
    result = compare({"y": np.array([0.0, found])}, {"y": np.array([0.0, wanted])}, DEFAULT)
    assert "1 of 2 elements differ, first at [1]" in result.mismatch


def test_the_tolerance_is_relative_to_the_reference() -> None:
    tight = CrossCheckSettings(tolerance={"float32": Tolerance(rtol=0.1, atol=0.0)})
    ten, eleven = (np.array([value], dtype=np.float32) for value in (10.0, 11.05))
    assert compare({"y": eleven}, {"y": ten}, tight).mismatch
    assert not compare({"y": ten}, {"y": eleven}, tight).mismatch


@pytest.mark.parametrize(
    ("dtype", "inside", "outside"),
    [
        (np.float16, 1.005, 1.05),
        (ml_dtypes.bfloat16, 1.03, 1.1),
        (np.float32, 1.00005, 1.001),
        (np.float64, 1 + 1e-10, 1 + 1e-8),
    ],
)
def test_each_float_type_has_a_tolerance(dtype: type, inside: float, outside: float) -> None:
    reference = {"y": np.array([1.0], dtype=dtype)}
    assert not compare({"y": np.array([inside], dtype=dtype)}, reference, DEFAULT).mismatch
    assert compare({"y": np.array([outside], dtype=dtype)}, reference, DEFAULT).mismatch


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([True]), np.array([False])),
        (np.array(["a"], dtype=object), np.array(["b"], dtype=object)),
    ],
)
def test_other_types_have_to_be_equal(found: np.ndarray, wanted: np.ndarray) -> None:
    assert compare({"y": found}, {"y": wanted}, DEFAULT).mismatch
    assert not compare({"y": wanted}, {"y": wanted}, DEFAULT).mismatch


def test_shape_dtype_and_missing_outputs_are_mismatches() -> None:
    reference = {"y": np.zeros((2, 3), dtype=np.float32)}
    assert "float32[3, 2]" in compare({"y": np.zeros((3, 2), dtype=np.float32)}, reference, DEFAULT).mismatch
    assert "float64[2, 3]" in compare({"y": np.zeros((2, 3))}, reference, DEFAULT).mismatch
    assert "missing" in compare({}, reference, DEFAULT).mismatch


def test_scalars_and_empty_outputs_are_compared() -> None:
    empty, scalar = np.zeros((0, 4), dtype=np.float32), np.array(1.0, dtype=np.float32)
    assert not compare({"y": empty}, {"y": empty}, DEFAULT).mismatch
    assert "first at []" in compare({"y": scalar}, {"y": scalar + 1}, DEFAULT).mismatch


def test_largest_errors_are_kept() -> None:
    recorder = CheckRecorder()
    reference = {"y": np.array([4.0, 100.0, INF])}
    recorder.record(compare({"y": np.array([4.5, 101.0, INF])}, reference, DEFAULT))
    recorder.record(compare(reference, reference, DEFAULT))
    statistics = recorder.statistics
    assert (statistics.checks, statistics.passed, statistics.failed) == (2, 1, 1)
    assert statistics.max_absolute_error == 1.0
    assert statistics.max_relative_error == 0.125
    assert statistics.last_mismatch.startswith("output 'y': 2 of 3 elements differ, first at [0]")
