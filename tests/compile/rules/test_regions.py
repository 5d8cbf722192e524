"""Regions and scattered elements: loops, forward and backward, and what they refuse."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tests.compile.plans import planned
from tests.compile.units import Build, floats, model_of

from onward.engine import Session
from onward.errors import OnwardError
from onward.graph import Array, Builder

I64 = ir.DataType.INT64


def _pool(rois: Array, shape: tuple[int, int] = (3, 2), scale: float = 1.0) -> Build:
    def build(g: Builder) -> ir.Value:
        x = floats(g, "x", 2, 3, 9, 7)
        return g.MaxRoiPool(x, floats(g, "rois", *rois.shape), pooled_shape=shape, spatial_scale=scale)

    return build


def test_max_roi_pool_is_onnxruntimes() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(-4, 12, (60, 4)).astype(np.float32)
    corners[::7] = np.round(corners[::7]) + 0.5
    rois = np.concatenate([rng.integers(0, 2, (60, 1)), corners], 1, dtype=np.float32)
    x = rng.standard_normal((2, 3, 9, 7)).astype(np.float32)
    for shape, scale in (((3, 2), 1.0), ((1, 5), 0.5), ((12, 9), 1.3)):
        model = model_of(_pool(rois, shape, scale))
        del model.graph.opset_imports["ai.onward"]
        stock = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (want,) = stock.run(None, {"x": x, "rois": rois})
        for engine in ("interpreter", "compiled"):
            got = Session(model, engine=engine).run({"x": x, "rois": rois})["y0"]  # type: ignore[arg-type]
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
@pytest.mark.parametrize("image", [-1.0, 2.0, np.nan])
def test_a_region_of_no_image_is_refused(engine: str, image: float) -> None:
    rois = np.array([[image, 0, 0, 3, 3]], np.float32)
    session = Session(model_of(_pool(rois)), engine=engine)  # type: ignore[arg-type]
    with pytest.raises(OnwardError, match="MaxRoiPool"):
        session.run({"x": np.zeros((2, 3, 9, 7), np.float32), "rois": rois})


@pytest.mark.parametrize("corner", [np.inf, -np.inf, np.nan, 1e30])
def test_corners_that_are_no_places_end_no_process(corner: float) -> None:
    rois = np.array([[0, 0, corner, corner, 3]], np.float32)
    x = np.ones((2, 3, 9, 7), np.float32)
    model = model_of(_pool(rois))
    want, got = (
        Session(model, engine=e).run({"x": x, "rois": rois})["y0"]  # type: ignore[arg-type]
        for e in ("interpreter", "compiled")
    )
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scattered_elements(reduction: str, axis: int) -> None:
    def build(g: Builder) -> ir.Value:
        indices = g.input("i", I64, (3, 2, 4))
        x, updates = floats(g, "x", 4, 5, 6), floats(g, "u", 3, 2, 4)
        return g.ScatterElements(x, indices, updates, axis=axis, reduction=reduction)

    rng = np.random.default_rng(1)
    feed = {
        "i": rng.integers(-4, 4, (3, 2, 4)),
        "x": rng.standard_normal((4, 5, 6)).astype(np.float32),
        "u": rng.standard_normal((3, 2, 4)).astype(np.float32),
    }
    model = model_of(build)
    want = Session(model, engine="interpreter").run(feed)["y0"]
    for threads in (1, 2, 3):
        plan = planned(model, feed, threads=threads)
        assert not plan.fallbacks
        got = plan.run(feed)["y0"]
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    feed["i"][2, 1, 3] = 9
    with pytest.raises(OnwardError, match="ScatterElements"):
        Session(model, engine="compiled").run(feed)
