"""Arithmetic and comparisons of integers."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.compile.rules.checks import check, declined

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Less", "Equal"])
def test_without_gaps(op_type: str) -> None:
    check(lambda g: g.emit(op_type, g.input("a", I64, (7,)), g.input("b", I64, (7,)))[0], ["integers"])


def test_broadcasts_are_declined() -> None:
    declined(
        lambda g: g.Add(g.input("a", I64, (2, 3)), g.input("b", I64, (3,))), "integers that are broadcast"
    )


def test_divisors_that_may_be_zero_are_declined() -> None:
    declined(
        lambda g: g.Div(g.input("a", I64, (2,)), g.input("b", I64, (2,))),
        "a divisor that is not known, 0 or -1",
    )
