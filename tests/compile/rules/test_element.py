"""Element-wise groups: one pass over memory for neighbours, whatever their layouts."""

from __future__ import annotations

import onnx_ir as ir
from tests.compile.rules.checks import check
from tests.compile.units import floats

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


def test_neighbours_are_one_pass() -> None:
    check(
        lambda g: g.Mul(
            g.Relu(g.Add(floats(g, "x", 3, 5), floats(g, "b", 5))), g.Sigmoid(floats(g, "z", 3, 5))
        ),
        ["element"],
    )


def test_a_transposed_operand_is_read_where_it_is() -> None:
    check(lambda g: g.Add(g.Transpose(floats(g, "x", 4, 6)), floats(g, "z", 6, 4)), ["copy", "element"])


def test_nothing_to_compute_takes_no_call() -> None:
    check(lambda g: g.Add(floats(g, "x", 0, 3), floats(g, "y", 3)), [])
