"""Pooling beyond the shared cases: ties, NaN and infinities, extents that are known at run time only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.ops.harness import run_ort

from onward.autodiff import gradients
from onward.engine import Session
from onward.engine.interpreter import Interpreter
from onward.errors import ShapeError, UnsupportedError
from onward.graph import Builder, dims_of
from onward.ops._pooling import window_maximum, window_sum
from onward.ops._window import resolve
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


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 1, 1]])
def test_the_gradient_of_average_pooling_with_dynamic_extents(pads: list[int], include: int) -> None:
    rng, window = np.random.default_rng(3), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": pads}

    def model(dims: Sequence[Any]) -> ir.Model:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="pool")
        g = Builder(graph)
        x = g.input("x", ir.DataType.FLOAT, dims)
        y = g.AveragePool(x, count_include_pad=include, **window)
        (dx,) = gradients(g, {y: g.Mul(y, y)}, [x])
        assert dx is not None
        g.output(dx, "dx")
        return ir.Model(graph, ir_version=10)

    dynamic = model(["N", "C", "H", "W"])
    for shape in ((2, 3, 7, 6), (1, 2, 5, 4)):
        data = {"x": rng.normal(size=shape).astype(np.float32)}
        expected = Interpreter(model(shape).graph).run(data)["dx"]
        np.testing.assert_allclose(Interpreter(dynamic.graph).run(data)["dx"], expected, rtol=1e-5, atol=1e-6)
        with Session(dynamic, engine="compiled") as session:
            np.testing.assert_allclose(session.run(data)["dx"], expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_average_pooling_says_when_it_needs_static_extents() -> None:
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="pool"))
    x = g.input("x", ir.DataType.FLOAT, ["N", 2, "H", 4])
    y = g.AveragePool(x, kernel_shape=[2, 2], auto_pad="SAME_UPPER")
    with pytest.raises(UnsupportedError, match=r"operator AveragePool, opset 21: .*static spatial extents"):
        gradients(g, {y: y}, [x])


def test_float16_sums_do_not_overflow() -> None:
    x = np.full((1, 1, 8, 8), 6e4, np.float16)
    np.testing.assert_array_equal(AveragePool(kernel_shape=(8, 8)).kernel(x), x[:, :, :1, :1])


def test_a_window_far_larger_than_the_input_is_refused() -> None:
    with pytest.raises(ShapeError, match="does not fit"):
        MaxPool(kernel_shape=(9,)).kernel(np.zeros((1, 1, 7), np.float32))


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("pads", [(0, 0), (1, 2), (4, 0)])
@pytest.mark.parametrize(("strides", "dilations"), [(1, 1), (2, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("kernel", [1, 3, 9])
def test_taps_that_meet_nothing_can_be_left_out(
    kernel: int, strides: int, dilations: int, pads: tuple[int, int], ceil_mode: int
) -> None:
    window = resolve((kernel,), strides=(strides,), pads=pads, dilations=(dilations,), ceil_mode=ceil_mode)
    for extent in (1, 2, 5, 8):
        try:
            whole = window.over((extent,))
        except ShapeError:
            continue
        x = np.random.default_rng(0).standard_normal((1, 2, extent))
        assert np.array_equal(window_maximum(x, whole.reduced), window_maximum(x, whole))
        np.testing.assert_allclose(window_sum(x, whole.reduced), window_sum(x, whole), atol=1e-12)
        at = np.arange(whole.out[0])[:, None] * strides + np.arange(kernel) * dilations
        begin, end = pads
        for include_pad, low, high in ((True, 0, begin + extent + end), (False, begin, begin + extent)):
            expected = np.maximum(((at >= low) & (at < high)).sum(axis=1), 1)
            counts = whole.counts(include_pad=include_pad, dtype=np.dtype(np.int64))
            assert np.array_equal(counts, expected)


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
@pytest.mark.parametrize("operator", ["AveragePool", "MaxPool", "LpPool"])
def test_a_window_far_larger_than_its_input_costs_what_the_input_does(operator: str, engine: str) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 22}, name="wide")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 2, 3, 3))
    wide = 1_000_001
    options = {"kernel_shape": [wide, wide], "ceil_mode": 1, "pads": [0, 0, wide - 3, wide - 3]}
    if operator == "AveragePool":
        options["count_include_pad"] = 0
    g.output(g.emit(operator, x, strides=[wide, wide], **options)[0], "y")
    array = np.arange(18, dtype=np.float32).reshape(1, 2, 3, 3)
    with Session(ir.Model(graph, ir_version=10), engine=engine) as session:  # type: ignore[arg-type]
        y = session.run({"x": array})["y"]
    rows = array.reshape(1, 2, 9).astype(np.float64)
    expected = {"AveragePool": rows.mean(2), "MaxPool": rows.max(2), "LpPool": np.sqrt((rows**2).sum(2))}
    np.testing.assert_allclose(y.reshape(1, 2), expected[operator], rtol=1e-6)
