"""Convolution in its three directions: images copied channels-last, weights packed once."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.compile.rules.checks import check, declined
from tests.compile.units import floats, kinds, lowered_of

from onward.autodiff import gradients
from onward.graph import Builder, dims_of

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


def _image(g: Builder, name: str = "x") -> ir.Value:
    return floats(g, name, 2, 3, 12, 12)


def test_forward() -> None:
    check(
        lambda g: g.Conv(_image(g), floats(g, "w", 4, 3, 3, 3), floats(g, "b", 4)),
        ["copy", "pack", "conv", "copy"],
    )


def test_weights_that_two_convolutions_read_are_packed_once() -> None:
    def build(g: Builder) -> list[ir.Value]:
        w = floats(g, "w", 4, 3, 3, 3)
        return [g.Conv(_image(g), w), g.Conv(_image(g, "z"), w)]

    check(build, ["copy", "pack", "conv", "copy", "conv", "copy", "copy"])


@pytest.mark.parametrize(("stride", "group", "pad"), [(1, 1, 1), (2, 1, 0), (1, 2, 2), (2, 4, 1)])
def test_both_gradients(stride: int, group: int, pad: int) -> None:
    def build(g: Builder) -> list[ir.Value]:
        x, w = floats(g, "x", 2, 4, 9, 10), floats(g, "w", 8, 4 // group, 3, 3)
        y = g.Conv(x, w, pads=[pad] * 4, strides=[stride] * 2, group=group)
        dy = floats(g, "dy", *dims_of(y))  # type: ignore[arg-type, misc]
        found = gradients(g, {y: dy}, [x, w])
        return [v for v in found if v is not None]

    lowered = lowered_of(build)
    assert "numpy" not in kinds(lowered)
    check(build, kinds(lowered))


def test_other_element_types_are_declined() -> None:
    declined(
        lambda g: g.Conv(floats(g, "x", 1, 2, 5, 5, dtype=F16), floats(g, "w", 3, 2, 3, 3, dtype=F16)),
        "x is float16",
    )
