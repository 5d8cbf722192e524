"""A tensor that the machine cannot hold is refused with the node's name before anything is allocated."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from onward.engine import Session
from onward.errors import ShapeError
from onward.graph.memory import largest_tensor, too_large
from onward.model import from_bytes

HUGE = {
    "ConstantOfShape": "[big] c = ConstantOfShape(shape)",
    "Expand": "[big] c = Expand(x, wide)",
    "Tile": "[big] c = Tile(x, shape)",
    "Pad": "[big] c = Pad(x, pads)",
    "Range": "[big] r = Range(zero, many, one) c = Cast<to = 1>(r)",
}


@pytest.mark.parametrize("operator", HUGE)
@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_a_result_larger_than_the_machine_is_refused_by_name(operator: str, engine: str) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[10] x) => (float y)
    <int64[1] shape = {1099511627776}, int64[2] wide = {274877906944, 10}, int64[2] pads = {1099511627776, 0},
     int64 zero = {0}, int64 one = {1}, int64 many = {1099511627776}>
    { BODY y = ReduceSum<keepdims = 0>(c) }""".replace("BODY", HUGE[operator])
    model = from_bytes(onnx.parser.parse_model(text).SerializeToString())
    with (
        Session(model, engine=engine) as session,  # type: ignore[arg-type]
        pytest.raises(ShapeError, match=rf"node 'big', operator {operator}"),
    ):
        session.run({"x": np.ones(10, np.float32)})


def test_the_machine_s_own_memory_is_the_limit() -> None:
    assert too_large(largest_tensor()) is None
    reason = too_large(largest_tensor() + 1)
    assert reason is not None
    assert f"{largest_tensor():,}" in reason
