"""Local response normalization over neighbouring channels."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.compile.rules.checks import check, declined
from tests.compile.units import floats, kinds, lowered_of

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


@pytest.mark.parametrize("size", [1, 3, 5])
def test_values(size: int) -> None:
    build = lambda g: g.LRN(floats(g, "x", 2, 6, 4, 5), size=size, alpha=0.1, beta=0.75, bias=1.0)  # noqa: E731
    found = kinds(lowered_of(build))
    assert "numpy" not in found
    check(build, found)


def test_what_is_not_an_image_is_declined() -> None:
    declined(lambda g: g.LRN(floats(g, "x", 2, 3, 4, 4, 4), size=3), "x is not an image")
