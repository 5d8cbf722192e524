"""A tensor that the machine cannot hold is refused with the node's name before anything is allocated."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from onward.engine import Session
from onward.engine.engines import EngineName
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
    assert f"{largest_tensor() + 1:,}" in reason
    assert f"{largest_tensor():,}" not in reason  # what a machine has is nobody's business but its owner's


WINDOWS = {
    "MaxPool": "y = MaxPool<kernel_shape = [3], pads = [FAR, FAR]>(x)",
    "AveragePool": "y = AveragePool<kernel_shape = [3], pads = [FAR, FAR], count_include_pad = 1>(x)",
    "LpPool": "y = LpPool<kernel_shape = [3], pads = [FAR, FAR]>(x)",
    "Conv": "y = Conv<pads = [FAR, FAR], strides = [FAR]>(x, w)",
    "ConvTranspose": "y = ConvTranspose<strides = [FAR]>(x, w)",
    "Resize": 'y = Resize<mode = "linear">(x, , , sizes)',
    "STFT": "r = Reshape(x, signal) y = STFT(r, one, , many)",
    "RoiAlign": "i = Reshape(x, image) y = RoiAlign<sampling_ratio = 1073741824>(i, rois, first)",
}


@pytest.mark.parametrize("operator", WINDOWS)
@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_extremes_of_windows_end_in_an_error_by_name(operator: str, engine: EngineName) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 1, 10] x) => (y)
    <float[1, 1, 3] w = {1, 1, 1}, int64[3] sizes = {1, 1, 1099511627776}, int64 one = {1},
     int64 many = {1099511627776}, int64[3] signal = {1, 10, 1}, int64[4] image = {1, 1, 2, 5},
     float[1, 4] rois = {0, 0, 1, 1}, int64[1] first = {0}>
    { BODY }""".replace("BODY", WINDOWS[operator].replace("FAR", str(2**40)))
    model = from_bytes(onnx.parser.parse_model(text).SerializeToString())
    with Session(model, engine=engine) as session, pytest.raises(ShapeError, match=operator):
        session.run({"x": np.ones((1, 1, 10), np.float32)})


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_a_region_far_larger_than_its_image_takes_no_time(engine: EngineName) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 1, 4, 4] x, float[2, 4] rois) => (float[2, 1, 1, 1] y)
    <int64[2] first = {0, 0}> { y = RoiAlign(x, rois, first) }"""
    model = from_bytes(onnx.parser.parse_model(text).SerializeToString())
    side = np.float32(1e6)
    rois = np.array([[-side, -side, side, side], [0, 0, np.inf, 4]], np.float32)
    with Session(model, engine=engine) as session:
        y = session.run({"x": np.ones((1, 1, 4, 4), np.float32), "rois": rois})["y"].reshape(-1)
    # 5 of 2 million points an axis are within a pixel of the image, at each side
    np.testing.assert_allclose(y[0], (5 / 2e6) ** 2, rtol=0.5)
    assert np.isnan(y[1])
