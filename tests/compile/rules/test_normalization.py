"""Layer, group and batch normalization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tests.compile.rules.checks import check, declined
from tests.compile.units import floats, kinds, lowered_of

from onward.graph import Builder

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


def test_layer_normalization() -> None:
    check(lambda g: g.LayerNormalization(floats(g, "x", 5, 7), floats(g, "s", 7)), ["layer_norm"])


def test_a_scale_of_another_extent_is_declined() -> None:
    declined(
        lambda g: g.LayerNormalization(floats(g, "x", 2, 3, 4), floats(g, "s", 3, 1), axis=1),
        "s has neither one element nor 12",
    )


def test_batch_normalization_is_coefficients_and_an_element_wise_part() -> None:
    def build(g: Builder) -> ir.Value:
        scale, bias, mean, variance = (floats(g, name, 4) for name in ("s", "b", "m", "v"))
        return g.BatchNormalization(floats(g, "x", 3, 4), scale, bias, mean, variance)

    check(build, ["element", "element"], {"v": np.array([0.5, 1, 2, 3], np.float32)})


def test_the_gradient_of_group_normalization_is_its_body() -> None:
    def build(g: Builder) -> list[ir.Value]:
        dy, x, scale = floats(g, "dy", 2, 6, 4, 5), floats(g, "x", 2, 6, 4, 5), floats(g, "s", 6)
        found = g.emit(
            "GroupNormalizationGrad", dy, x, scale, domain="ai.onward", outputs=3, num_groups=3, epsilon=1e-5
        )
        return list(found)

    found = kinds(lowered_of(build))
    assert "numpy" not in found
    check(build, found)
