"""Passes over rows: softmax along any axis."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.compile.rules.checks import check
from tests.compile.units import floats

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


def test_softmax_over_an_outer_axis() -> None:
    check(lambda g: g.Softmax(floats(g, "x", 5, 7), axis=0), ["copy", "softmax", "copy"])


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_along_the_last_axis(op_type: str) -> None:
    check(lambda g: g.emit(op_type, floats(g, "x", 3, 5, 7), axis=-1)[0], ["softmax"])
