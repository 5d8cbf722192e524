"""Dropout whose numbers follow from seed, step and position."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tests.compile.rules.checks import check, declined
from tests.compile.units import Build, floats

from onward.graph import Builder

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


def _build(*shape: int) -> Build:
    def build(g: Builder) -> ir.Value:
        seed, step = g.input("seed", I64, ()), g.input("step", I64, ())
        return g.onward.PhiloxDropout(floats(g, "x", *shape), seed, step, ratio=0.5, salt=1)

    return build


def test_the_units_that_the_interpreter_drops() -> None:
    check(_build(7, 33), ["dropout"], {"seed": np.array(5), "step": np.array(9)})


def test_more_elements_than_there_are_positions() -> None:
    declined(_build(1 << 16, 1 << 16), "more than 2**32 elements")
