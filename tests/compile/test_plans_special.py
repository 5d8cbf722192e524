"""NaN, infinities and denormals travel through plans of layers as in the interpreter; errors do too."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import planned

from onward.autodiff import gradients
from onward.engine.interpreter import Interpreter
from onward.errors import ShapeError
from onward.graph import Array, Builder, dims_of

Layer = Callable[[Builder, ir.Value, Callable[..., ir.Value]], ir.Value]

SPECIAL = [np.nan, np.inf, -np.inf, 1e-40]
HUGE = [3e38]


def _normalized(g: Builder, x: ir.Value, w: Callable[..., ir.Value]) -> ir.Value:
    """Batch normalization by the batch."""
    y, *_ = g.emit("BatchNormalization", x, w(8), w(8), w(8), w(8), outputs=3, training_mode=1)
    return y


IMAGES: dict[str, Layer] = {
    "conv": lambda g, x, w: g.Conv(x, w(5, 8, 3, 3), pads=[1, 1, 1, 1]),
    "strided": lambda g, x, w: g.Conv(x, w(5, 8, 3, 3), strides=[2, 2]),
    "pointwise": lambda g, x, w: g.Conv(x, w(20, 8, 1, 1)),
    "depthwise": lambda g, x, w: g.Conv(x, w(8, 1, 3, 3), pads=[1, 1, 1, 1], group=8),
    "max": lambda g, x, w: g.MaxPool(x, kernel_shape=[3, 3], strides=[2, 2]),
    "average": lambda g, x, w: g.AveragePool(x, kernel_shape=[2, 2], strides=[2, 2]),
    "global max": lambda g, x, w: g.GlobalMaxPool(x),
    "global average": lambda g, x, w: g.GlobalAveragePool(x),
    "lrn": lambda g, x, w: g.LRN(x, size=3, alpha=0.1),
    "chain": lambda g, x, w: g.Sigmoid(g.Mul(g.Relu(x), g.Tanh(x))),
    "dense": lambda g, x, w: g.Gemm(g.Flatten(x), w(4, 8 * 36), w(4), transB=1),
    "softmax": lambda g, x, w: g.Softmax(x, axis=1),
    "layer norm": lambda g, x, w: g.LayerNormalization(x, w(6), w(6), axis=-1),
    "sum": lambda g, x, w: g.ReduceSum(x, [1, 3], keepdims=0),
    "largest": lambda g, x, w: g.ReduceMax(x, [2], keepdims=1),
    "pad": lambda g, x, w: g.Relu(g.Pad(x, [0, 2, 0, 1, 0, 0, 1, 0])),
}

NORMALIZED: dict[str, Layer] = {
    "normalized relu": lambda g, x, w: g.Conv(g.Relu(_normalized(g, x, w)), w(5, 8, 1, 1)),
    "normalized clip": lambda g, x, w: g.Conv(g.Clip(_normalized(g, x, w), 0.0, 0.5), w(5, 8, 1, 1)),
}
"""Huge numbers have an infinite variance: what then becomes of the gradient is nobody's promise."""


def _model(layer: Layer) -> tuple[ir.Model, dict[str, Array]]:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="special")
    g = Builder(graph)
    rng = np.random.default_rng(0)
    feed: dict[str, Array] = {"x": rng.standard_normal((2, 8, 6, 6)).astype(np.float32)}
    x = g.input("x", ir.DataType.FLOAT, (2, 8, 6, 6))

    def weight(*shape: int) -> ir.Value:
        feed[f"w{len(feed)}"] = rng.standard_normal(shape).astype(np.float32)
        return g.input(f"w{len(feed) - 1}", ir.DataType.FLOAT, shape)

    y = layer(g, x, weight)
    shape: Any = dims_of(y)
    feed["dy"] = rng.standard_normal(shape).astype(np.float32)
    dy = g.input("dy", ir.DataType.FLOAT, shape)
    g.output(y, "y")
    g.output(gradients(g, {y: dy}, [x])[0], "dx")
    return ir.Model(graph, ir_version=10), feed


@pytest.mark.parametrize(
    ("name", "value"),
    [*itertools.product(IMAGES, [*SPECIAL, *HUGE]), *itertools.product(NORMALIZED, SPECIAL)],
)
def test_one_special_element(name: str, value: float) -> None:
    """What it reaches is what it reaches in the interpreter, and nothing else changes."""
    model, feed = _model({**IMAGES, **NORMALIZED}[name])
    feed["x"][1, 3, 2, 2] = value
    plan = planned(model, feed)
    assert plan.fallbacks == {}
    want = Interpreter(model.graph).run(feed)
    got = plan.run(feed)
    for key, array in want.items():
        np.testing.assert_array_equal(np.isnan(got[key]), np.isnan(array), err_msg=key)
        finite = np.isfinite(array)
        np.testing.assert_array_equal(np.isinf(got[key]), np.isinf(array), err_msg=key)
        scale = np.abs(array[finite]).max(initial=1)
        np.testing.assert_allclose(got[key][finite], array[finite], rtol=1e-4, atol=1e-6 * scale)


def test_a_special_gradient_travels() -> None:
    model, feed = _model(IMAGES["conv"])
    feed["dy"][0, 2, 1, 1] = np.inf
    want, got = Interpreter(model.graph).run(feed)["dx"], planned(model, feed).run(feed)["dx"]
    np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


def test_denormals_are_kept() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="small")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, (40,))
    g.output(g.Mul(x, 0.5), "half")
    g.output(g.Add(x, x), "twice")
    model = ir.Model(graph, ir_version=10)
    feed = {"x": (np.arange(40) * np.float32(1.4e-45)).astype(np.float32)}
    got, want = planned(model, feed).run(feed), Interpreter(graph).run(feed)
    for key, array in want.items():
        np.testing.assert_array_equal(got[key], array)
    assert want["twice"].any()


@pytest.mark.parametrize("index", [7, -8, 2**40])
@pytest.mark.parametrize("computed", [False, True])
def test_indices_out_of_range_are_refused(index: int, computed: bool) -> None:
    """Native kernels do not check them: the plan does, whether they are inputs or computed."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="rows")
    g = Builder(graph)
    indices = g.input("i", ir.DataType.INT64, (3,))
    table = g.input("t", ir.DataType.FLOAT, (7, 5))
    g.output(g.Gather(table, g.Add(indices, g.const([0])) if computed else indices, axis=0), "y")
    model = ir.Model(graph, ir_version=10)
    feed: dict[str, Array] = {"i": np.array([1, -7, 6]), "t": np.arange(35, dtype=np.float32).reshape(7, 5)}
    plan = planned(model, feed)
    assert plan.fallbacks == {}
    np.testing.assert_array_equal(plan.run(feed)["y"], feed["t"][[1, 0, 6]])
    with pytest.raises(ShapeError, match=f"operator Gather, opset 21: index {index} at position"):
        plan.run({**feed, "i": np.array([1, index, 6])})
    np.testing.assert_array_equal(plan.run(feed)["y"], feed["t"][[1, 0, 6]])
