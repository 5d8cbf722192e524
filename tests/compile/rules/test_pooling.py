"""Pooling and its gradients."""

from __future__ import annotations

import onnx_ir as ir
from tests.compile.rules.checks import check, declined
from tests.compile.units import floats, kinds, lowered_of

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


def test_maxima() -> None:
    check(lambda g: g.MaxPool(floats(g, "x", 2, 3, 12, 12), kernel_shape=[2, 2]), ["copy", "max", "copy"])


def test_means_beside_a_border() -> None:
    build = lambda g: g.AveragePool(floats(g, "x", 2, 3, 7, 8), kernel_shape=[3, 3], pads=[1] * 4)  # noqa: E731
    found = kinds(lowered_of(build))
    assert "numpy" not in found
    check(build, found)


def test_windows_in_the_padding_alone_are_declined() -> None:
    declined(
        lambda g: g.AveragePool(floats(g, "x", 1, 2, 2, 9), kernel_shape=[1, 1], pads=[1, 0, 0, 0]),
        "windows in the padding alone",
    )


def test_a_gradient_without_its_pooling_is_declined() -> None:
    declined(
        lambda g: g.onward.MaxPoolGrad(
            floats(g, "dy", 1, 2, 4, 4), floats(g, "x", 1, 2, 8, 8), kernel_shape=[2, 2], strides=[2, 2]
        ),
        "the graph has no MaxPool of the same operand and window",
    )
