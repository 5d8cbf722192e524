"""Gather and its gradient: rows by checked indices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tests.compile.rules.checks import check, declined
from tests.compile.units import floats

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


def test_rows() -> None:
    check(lambda g: g.Gather(floats(g, "x", 3, 4), g.input("i", I64, (2, 5))), ["gather"])


def test_an_embeddings_gradient_adds_rows_that_come_again() -> None:
    check(
        lambda g: g.onward.GatherGrad(
            floats(g, "dy", 3, 4), g.input("i", I64, (3,)), g.const([9, 4], "int64")
        ),
        ["clear", "scatter_rows"],
        {"i": np.array([2, 2, 7])},
    )


def test_other_axes_are_declined() -> None:
    declined(
        lambda g: g.Gather(floats(g, "x", 3, 4), g.input("i", I64, (2,)), axis=1),
        "only the first axis by int64 indices",
    )
