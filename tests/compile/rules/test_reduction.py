"""Reductions along rows, along columns, and positions of extremes."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.compile.rules.checks import check, declined
from tests.compile.units import floats

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


@pytest.mark.parametrize(
    ("axes", "kernels"), [([1], ["reduce_rows"]), ([0], ["reduce", "finish"]), ([0, 1], ["reduce", "finish"])]
)
def test_sums(axes: list[int], kernels: list[str]) -> None:
    check(lambda g: g.ReduceSum(floats(g, "x", 5, 7), axes), kernels)


def test_too_many_positions_are_declined() -> None:
    declined(
        lambda g: g.ArgMax(floats(g, "x", 1, 1 << 24), axis=1), "positions that float32 does not tell apart"
    )
