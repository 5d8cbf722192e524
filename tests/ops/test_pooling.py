"""Pooling beyond the shared cases: ties, NaN and infinities, extents that are known at run time only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.ops.harness import run_ort

from onward.autodiff import gradients
from onward.engine.interpreter import Interpreter
from onward.errors import ShapeError, UnsupportedError
from onward.graph import Builder, dims_of
from onward.ops.average_pool import AveragePool
from onward.ops.max_pool import MaxPool
from onward.ops.max_pool_grad import MaxPoolGrad


def test_the_first_of_equal_maxima_takes_the_gradient() -> None:
    x = np.array([[[[3.0, 3.0, 1.0], [3.0, 2.0, 1.0], [0.0, 2.0, 1.0]]]])
    dy = np.array([[[[1.0, 2.0], [4.0, 8.0]]]])
    dx = MaxPoolGrad(kernel_shape=(2, 2)).kernel(dy, x)
    np.testing.assert_array_equal(dx, [[[[1.0, 2.0, 0.0], [4.0, 8.0, 0.0], [0.0, 0.0, 0.0]]]])


def test_nan_is_the_maximum_of_its_windows_and_takes_their_gradient() -> None:
    x = np.array([[[1.0, np.nan, 3.0, 2.0, np.nan]]], np.float32)
    pool = MaxPool(kernel_shape=(2,), output_count=2)
    y, indices = pool.kernel(x)
    np.testing.assert_array_equal(y, [[[np.nan, np.nan, 3.0, np.nan]]])
    np.testing.assert_array_equal(indices, [[[1, 1, 2, 4]]])
    dx = MaxPoolGrad(kernel_shape=(2,)).kernel(np.array([[[1.0, 2.0, 4.0, 8.0]]], np.float32), x)
    np.testing.assert_array_equal(dx, [[[0.0, 3.0, 4.0, 0.0, 8.0]]])


def test_padding_is_never_the_place_of_a_maximum() -> None:
    x = np.full((1, 1, 2, 2), -np.inf, np.float32)
    y, indices = MaxPool(kernel_shape=(2, 2), pads=(1, 1, 1, 1), output_count=2).kernel(x)
    np.testing.assert_array_equal(y, np.full((1, 1, 3, 3), -np.inf))
    np.testing.assert_array_equal(indices, [[[[0, 0, 1], [0, 0, 1], [2, 2, 3]]]])


def test_infinite_gradients_stay_where_they_belong() -> None:
    x = np.array([[[1.0, 2.0, 0.0, 4.0]]], np.float32)
    dx = MaxPoolGrad(kernel_shape=(2,), strides=(2,)).kernel(np.array([[[np.inf, 1.0]]], np.float32), x)
    np.testing.assert_array_equal(dx, [[[0.0, np.inf, 0.0, 1.0]]])


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("opset", [18, 19, 21, 22])
def test_a_window_that_would_start_behind_the_input_is_dropped_from_the_shape(
    op_type: str, opset: int
) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="pool")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ["N", 2, 7])
    y = g.output(g.emit(op_type, x, kernel_shape=[2], strides=[4], ceil_mode=1)[0], "y")
    assert dims_of(y) == ("N", 2, 2)
    data = np.arange(14, dtype=np.float32).reshape(1, 2, 7)
    got = Interpreter(graph).run({"x": data})["y"]
    np.testing.assert_allclose(got, run_ort(ir.Model(graph, ir_version=10), {"x": data})["y"], rtol=1e-6)


@pytest.mark.parametrize("op_type", ["MaxPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"])
def test_gradients_with_dynamic_extents(op_type: str) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="pool")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ["N", "C", "H", "W"])
    y = g.MaxPool(x, kernel_shape=[3, 2], strides=[2, 2]) if op_type == "MaxPool" else g.emit(op_type, x)[0]
    (dx,) = gradients(g, {y: y}, [x])
    assert dx is not None
    g.output(dx, "dx")
    model, rng = ir.Model(graph, ir_version=10), np.random.default_rng(3)
    for shape in ((2, 3, 7, 6), (1, 2, 5, 4)):
        data = rng.normal(size=shape).astype(np.float32)
        got = Interpreter(graph).run({"x": data})["dx"]
        assert got.shape == shape
        np.testing.assert_allclose(got, run_ort(model, {"x": data})["dx"], rtol=1e-5, atol=1e-6)


def test_the_gradient_of_average_pooling_says_that_it_needs_static_extents() -> None:
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="pool"))
    x = g.input("x", ir.DataType.FLOAT, ["N", 2, "H", 4])
    y = g.AveragePool(x, kernel_shape=[2, 2])
    with pytest.raises(UnsupportedError, match=r"operator AveragePool, opset 21: .*static spatial extents"):
        gradients(g, {y: y}, [x])


def test_float16_sums_do_not_overflow() -> None:
    x = np.full((1, 1, 8, 8), 6e4, np.float16)
    np.testing.assert_array_equal(AveragePool(kernel_shape=(8, 8)).kernel(x), x[:, :, :1, :1])


def test_a_window_far_larger_than_the_input_is_refused() -> None:
    with pytest.raises(ShapeError, match="does not fit"):
        MaxPool(kernel_shape=(9,)).kernel(np.zeros((1, 1, 7), np.float32))
