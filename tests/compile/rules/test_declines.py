"""Why rules leave nodes to NumPy: each reason with the least graph that has it."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
from tests.compile.units import floats, kinds, lowered_of

from onward.compile.items import Fallback
from onward.graph import Builder

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16

DECLINED: dict[str, Callable[[Builder], ir.Value]] = {
    "x is float16": lambda g: g.MatMul(floats(g, "x", 3, 4, dtype=F16), floats(g, "w", 4, 5, dtype=F16)),
    "a bias that is not one row": lambda g: g.Gemm(
        floats(g, "x", 3, 4), floats(g, "w", 4, 5), floats(g, "b", 3, 1)
    ),
    "only the first axis by int64 indices": lambda g: g.Gather(
        floats(g, "x", 3, 4), g.input("i", I64, (2,)), axis=1
    ),
    "integers that are broadcast": lambda g: g.Add(g.input("a", I64, (2, 3)), g.input("b", I64, (3,))),
    "a divisor that is not known, 0 or -1": lambda g: g.Div(g.input("a", I64, (2,)), g.input("b", I64, (2,))),
    "windows in the padding alone": lambda g: g.AveragePool(
        floats(g, "x", 1, 2, 2, 9), kernel_shape=[1, 1], pads=[1, 0, 0, 0]
    ),
    "x is not an image": lambda g: g.LRN(floats(g, "x", 2, 3, 4, 4, 4), size=3),
    "the graph has no MaxPool of the same operand and window": lambda g: g.onward.MaxPoolGrad(
        floats(g, "dy", 1, 2, 4, 4), floats(g, "x", 1, 2, 8, 8), kernel_shape=[2, 2], strides=[2, 2]
    ),
    "s has neither one element nor 12": lambda g: g.LayerNormalization(
        floats(g, "x", 2, 3, 4), floats(g, "s", 3, 1), axis=1
    ),
    "positions that float32 does not tell apart": lambda g: g.ArgMax(floats(g, "x", 1, 1 << 24), axis=1),
    "more than 2**32 elements": lambda g: g.onward.PhiloxDropout(
        floats(g, "x", 1 << 16, 1 << 16),
        g.input("seed", I64, ()),
        g.input("step", I64, ()),
        ratio=0.5,
        salt=1,
    ),
    "no elements": lambda g: g.Relu(floats(g, "x", 0, 3)),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_the_reason_is_given(reason: str) -> None:
    lowered = lowered_of(DECLINED[reason])
    assert kinds(lowered) == ["numpy"]
    (item,) = lowered.calls
    assert isinstance(item, Fallback)
    assert item.reason == reason
