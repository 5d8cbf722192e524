from __future__ import annotations

import numpy as np
import pytest

from onward.errors import ConfigError
from onward.verify.tolerance import EXACT, TOLERANCES, Tolerance, measure, tolerance_for

LOOSE = Tolerance(absolute=1e-3)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_equal_arrays_agree_exactly():
    found = measure(f32(1, 2), f32(1, 2), EXACT)
    assert found.ok
    assert (found.max_abs, found.max_rel) == (0, 0)


def test_nan_and_infinity_agree_with_themselves():
    values = f32(np.nan, np.inf, -np.inf)
    found = measure(values, values.copy(), EXACT)
    assert found.ok
    assert found.max_abs == 0


@pytest.mark.parametrize("other", [1.0, np.inf, -np.inf])
@pytest.mark.parametrize("swap", [False, True])
def test_nan_agrees_with_nothing_else(other, swap):
    pair = (f32(0, other), f32(0, np.nan)) if swap else (f32(0, np.nan), f32(0, other))
    found = measure(*pair, Tolerance(absolute=1e9, relative=1e9))
    assert not found.ok
    assert found.max_abs == np.inf
    assert found.position == (1,)


def test_infinity_does_not_agree_with_a_number_or_its_negative():
    huge = Tolerance(absolute=1e30, relative=1e30, scale=1e30)
    assert not measure(f32(np.inf), f32(1), huge).ok
    assert not measure(f32(1), f32(np.inf), huge).ok
    assert not measure(f32(np.inf), f32(-np.inf), huge).ok


def test_each_part_of_the_tolerance_counts():
    assert measure(f32(0.0009), f32(0), LOOSE).ok
    assert not measure(f32(0.0011), f32(0), LOOSE).ok
    assert measure(f32(1009), f32(1000), Tolerance(relative=0.01)).ok
    assert not measure(f32(1011), f32(1000), Tolerance(relative=0.01)).ok
    assert measure(f32(0.9, 1000), f32(0, 1000), Tolerance(scale=0.001)).ok
    assert not measure(f32(1.1, 1000), f32(0, 1000), Tolerance(scale=0.001)).ok


def test_the_worst_element_is_named():
    found = measure(f32(1, 2, 3), f32(1, 2.5, 3.1), EXACT)
    assert found.position == (1,)
    assert (found.ours, found.theirs) == ("2.0", "2.5")
    assert found.max_abs == pytest.approx(0.5)
    assert found.max_rel == pytest.approx(0.2)


def test_integers_and_booleans_are_exact():
    big = 2**62
    found = measure(np.array([big]), np.array([big + 1]), EXACT)
    assert not found.ok
    assert found.max_abs == 1
    assert measure(np.array([big]), np.array([big]), EXACT).ok
    assert not measure(np.array([True]), np.array([False]), EXACT).ok


def test_other_shapes_dtypes_and_kinds_disagree():
    assert measure(f32(1), f32(1, 1), LOOSE).note == "shape [1] against [2]"
    assert measure(f32(1), np.ones(1), LOOSE).note == "dtype float32 against float64"
    assert measure([f32(1)], f32(1), LOOSE).note == "onward gives list, not a tensor"


def test_strings_compare_by_content():
    left, right = np.array(["a", "b"], object), np.array(["a", "c"], object)
    assert measure(left, left.copy(), EXACT).ok
    assert measure(left, right, EXACT).position == (1,)


def test_empty_and_scalar_arrays():
    assert measure(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), EXACT).ok
    assert measure(np.float32(1).reshape(()), np.float32(2).reshape(()), EXACT).position == ()


def test_a_tolerance_for_floats_leaves_integers_exact():
    assert tolerance_for(np.dtype(np.int64), LOOSE) == EXACT
    assert tolerance_for(np.dtype(np.float64), LOOSE) == LOOSE
    assert tolerance_for(np.dtype(np.float64), {"float32": LOOSE}) == TOLERANCES["float64"]
    assert tolerance_for(np.dtype(np.uint8), {"uint8": Tolerance(1)}) == Tolerance(1)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_malformed_tolerances_are_refused(value):
    with pytest.raises(ConfigError, match="relative"):
        Tolerance(relative=value)
