"""Matrix products of windows with any strides."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.compile.rules.checks import check, declined
from tests.compile.units import floats, kinds, lowered_of

from onward.graph import Builder

I64 = ir.DataType.INT64


@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((2, 3, 4), (2, 4, 1))],
)
def test_shapes(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    build = lambda g: g.MatMul(floats(g, "a", *left), floats(g, "b", *right))  # noqa: E731
    found = kinds(lowered_of(build))
    assert "numpy" not in found
    check(build, found)


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_transposed_operands_are_read_in_place(transposed: tuple[int, int]) -> None:
    def build(g: Builder) -> ir.Value:
        a = floats(g, "a", *((7, 6) if transposed[0] else (6, 7)))
        b = floats(g, "b", *((20, 7) if transposed[1] else (7, 20)))
        return g.Gemm(a, b, floats(g, "c", 20), transA=transposed[0], transB=transposed[1])

    found = kinds(lowered_of(build))
    assert "copy" not in found
    assert "numpy" not in found
    check(build, found)


def test_what_is_declined() -> None:
    declined(lambda g: g.MatMul(g.input("x", I64, (3, 4)), g.input("w", I64, (4, 5))), "x is int64")
