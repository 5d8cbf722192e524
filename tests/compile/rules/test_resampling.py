"""Resize by taps, one axis after the other."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tests.compile.rules.checks import check
from tests.compile.units import floats

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


def test_an_image_twice_as_large() -> None:
    check(
        lambda g: g.Resize(floats(g, "x", 2, 3, 12, 12), None, np.float32([1, 1, 2, 2])),
        ["copy", "resample", "copy"],
    )


def test_a_cubic_filter_its_sums_nested() -> None:
    check(
        lambda g: g.Resize(floats(g, "x", 2, 3, 12, 12), None, np.float32([1, 1, 2, 2]), mode="cubic"),
        ["copy", "resample", "resample", "copy"],
    )


def test_rows_of_a_matrix() -> None:
    check(lambda g: g.Resize(floats(g, "x", 5, 7), None, None, [9, 7]), ["resample"])
