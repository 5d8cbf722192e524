"""Which values are channels-last, and their borders."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.compile.units import floats, program_of, unit_of

from onward.graph import Builder


def _geometry(build) -> dict[str, tuple[int, int, int, int]]:  # type: ignore[no-untyped-def]
    unit = unit_of(program_of(build))
    return {v.name or "": (i.top, i.left, i.bottom, i.right) for v, i in unit.images.items()}


def test_a_convolution_gets_the_border_that_its_windows_reach_into() -> None:
    def build(g: Builder) -> ir.Value:
        x, w = floats(g, "x", 2, 3, 9, 9), floats(g, "w", 4, 3, 3, 3)
        return g.Conv(x, w, pads=[1, 2, 1, 0])

    found = _geometry(build)
    assert found["x"] == (1, 2, 1, 0)
    assert found["y0"] == (0, 0, 0, 0)
    assert "w" not in found


def test_element_wise_operations_pass_the_layout_on_to_values_of_their_shape() -> None:
    def build(g: Builder) -> ir.Value:
        x, w, r = floats(g, "x", 2, 3, 9, 9), floats(g, "w", 4, 3, 1, 1), floats(g, "r", 2, 4, 9, 9)
        return g.Relu(g.Add(g.Conv(x, w), g.Add(r, floats(g, "bias", 4, 1, 1))))

    found = _geometry(build)
    assert "r" in found
    assert "y0" in found
    assert "bias" not in found


def test_what_no_kernel_takes_so_stays_as_it_is() -> None:
    assert _geometry(lambda g: g.Relu(floats(g, "x", 2, 3, 9, 9))) == {}
    assert _geometry(lambda g: g.MaxPool(floats(g, "x", 1, 2, 3, 3, 3, 3), kernel_shape=[2] * 4)) == {}


def test_concat_keeps_a_layout_that_a_neighbour_has() -> None:
    def build(g: Builder) -> ir.Value:
        x, w, r = floats(g, "x", 2, 3, 9, 9), floats(g, "w", 4, 3, 1, 1), floats(g, "r", 2, 5, 9, 9)
        return g.Concat(g.Conv(x, w), r, axis=1)

    assert {"x", "r", "y0"} <= set(_geometry(build))


def test_the_gradient_of_max_pooling_shares_the_borders_of_the_forward_pass() -> None:
    def build(g: Builder) -> list[ir.Value]:
        x, w = floats(g, "x", 2, 3, 9, 9), floats(g, "w", 4, 3, 3, 3)
        y = g.MaxPool(x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        return [
            g.Conv(x, w, pads=[2, 2, 2, 2]),
            g.onward.MaxPoolGrad(y, x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        ]

    found = _geometry(build)
    assert found["x"] == (2, 2, 2, 2)
    assert found["y1"] == found["x"]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.DOUBLE])
def test_both_compiled_types_are_kept_so(dtype: ir.DataType) -> None:
    def build(g: Builder) -> ir.Value:
        x, w = floats(g, "x", 2, 3, 9, 9, dtype=dtype), floats(g, "w", 4, 3, 1, 1, dtype=dtype)
        return g.Conv(x, w)

    assert set(_geometry(build)) == {"x", "y0"}
