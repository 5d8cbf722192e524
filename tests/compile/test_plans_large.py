"""Plans of layers that are large enough for Winograd, BLAS, and products by taps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import assert_as_exact, interpreted, planned, wide

from onward.autodiff import gradients
from onward.graph import Array, Builder, dims_of
from onward.passes import cast_floats

CHOICES = {
    "dots_block": 1024,
    "dots_few": 16,
    "dots_line": 64,
    "product_in_place_left": 256 << 10,
    "product_in_place_right": 1 << 20,
    "product_short": 128,
    "winograd_channels": 32,
    "winograd_extent": 8,
}
"""The constants that choose between techniques, so that each layer meets its own on every machine; how the
kernels are cut is the machine's."""

Layer = Callable[[Builder, ir.Value, Callable[..., ir.Value]], ir.Value]


def _rows(g: Builder, x: ir.Value, w: Callable[..., ir.Value]) -> ir.Value:
    hidden = g.Gelu(g.Add(g.MatMul(x, w(256, 300)), w(300)))
    return g.Add(g.MatMul(hidden, w(300, 256)), x)


def _attention(g: Builder, x: ir.Value, w: Callable[..., ir.Value]) -> ir.Value:
    heads = [g.Reshape(g.MatMul(x, w(256, 256)), [0, 0, 4, 64]) for _ in range(3)]
    query, key, value = (
        g.Transpose(h, perm=p) for h, p in zip(heads, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scores = g.Softmax(g.Mul(g.MatMul(query, key), 0.125), axis=-1)
    return g.Reshape(g.Transpose(g.MatMul(scores, value), perm=[0, 2, 1, 3]), [0, 0, 256])


def _steps(g: Builder, x: ir.Value, w: Callable[..., ir.Value]) -> ir.Value:
    """Sequences turned to steps: the rows of one product do not follow each other in memory."""
    return g.MatMul(g.Transpose(x, perm=[1, 0, 2]), w(300, 1000))


def _shared(g: Builder, x: ir.Value, w: Callable[..., ir.Value]) -> ir.Value:
    """Left sides that all matrices share, in products that are stored transposed."""
    first, second = (g.Transpose(g.MatMul(w(40, 50), x), perm=[0, 2, 1]) for _ in range(2))
    return g.Sub(first, second)


LAYERS: dict[str, tuple[tuple[int, ...], Layer, str]] = {
    "winograd": (
        (2, 36, 15, 17),
        lambda g, x, w: g.Relu(g.Conv(x, w(40, 36, 3, 3), w(40), pads=[1, 1, 1, 1])),
        "winograd",
    ),
    "winograd twice": (
        (1, 32, 14, 14),
        lambda g, x, w: g.Conv(g.Conv(x, w(32, 32, 3, 3), pads=[1, 1, 1, 1]), w(48, 32, 3, 3)),
        "winograd",
    ),
    "pointwise": ((2, 64, 14, 15), lambda g, x, w: g.Conv(x, w(128, 64, 1, 1)), "conv"),
    "strided": (
        (2, 48, 19, 18),
        lambda g, x, w: g.Conv(x, w(64, 48, 3, 3), pads=[1] * 4, strides=[2, 2]),
        "conv",
    ),
    "grouped": ((2, 64, 9, 9), lambda g, x, w: g.Conv(x, w(64, 16, 3, 3), pads=[1] * 4, group=4), "conv"),
    "depthwise": (
        (2, 70, 15, 14),
        lambda g, x, w: g.Conv(x, w(70, 1, 5, 5), pads=[2] * 4, group=70),
        "depthwise",
    ),
    "signal": ((4, 128, 50), lambda g, x, w: g.Relu(g.Conv(x, w(100, 128, 4))), "conv"),
    "rows": ((8, 40, 256), _rows, "packed_gemm"),
    "attention": ((9, 33, 256), _attention, "packed_gemm"),
    "steps": ((20, 3, 300), _steps, "packed_gemm 20x1000x300"),
    "shared": ((3, 50, 60), _shared, "packed_gemm 60x40x50"),
    "dense": ((260, 500), lambda g, x, w: g.Relu(g.Gemm(x, w(200, 500), w(200), transB=1)), "packed_gemm"),
    "few rows": (
        (37, 501),
        lambda g, x, w: g.Relu(g.Gemm(x, w(200, 501), w(200), transB=1)),
        "dots batchx200x501",
    ),
    "one column": ((40, 300), lambda g, x, w: g.Gemm(x, w(1, 300), w(1), transB=1), "dots batchx1x300"),
    "turned": ((500, 260), lambda g, x, w: g.Gemm(x, w(500, 200), w(200), transA=1), "packed_gemm"),
}


def _made(shape: tuple[int, ...], layer: Layer) -> tuple[ir.Model, dict[str, Array]]:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="large")
    g = Builder(graph)
    rng = np.random.default_rng(0)
    feed: dict[str, Array] = {"x": rng.standard_normal(shape).astype(np.float32)}
    inputs = [g.input("x", ir.DataType.FLOAT, shape)]

    def weight(*extents: int) -> ir.Value:
        name = f"w{len(feed)}"
        feed[name] = (rng.standard_normal(extents) / np.sqrt(np.prod(extents[1:]))).astype(np.float32)
        inputs.append(g.input(name, ir.DataType.FLOAT, extents))
        return inputs[-1]

    y = layer(g, inputs[0], weight)
    extents: Any = dims_of(y)
    feed["dy"] = rng.standard_normal(extents).astype(np.float32)
    dy = g.input("dy", ir.DataType.FLOAT, extents)
    g.output(y, "y")
    for x, dx in zip(inputs, gradients(g, {y: dy}, inputs), strict=True):
        assert dx is not None
        g.output(dx, f"{x.name}.gradient")
    return ir.Model(graph, ir_version=10), feed


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_large_layers(name: str, threads: int) -> None:
    shape, layer, kernel = LAYERS[name]
    model, feed = _made(shape, layer)
    (single,), _ = interpreted(model, {}, [feed])
    (double,), _ = interpreted(cast_floats(model, ir.DataType.DOUBLE), {}, [wide(feed)])
    plan = planned(model, feed, threads=threads, **CHOICES)
    assert plan.fallbacks == {}
    assert any(kernel in row.kernel for row in plan.plan.rows), "the layer does not meet its technique"
    first = plan.run(feed)
    assert_as_exact(first, single, double, "value")
    second = plan.run(feed)
    assert {k: x.tobytes() for k, x in first.items()} == {k: x.tobytes() for k, x in second.items()}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name", ["winograd", "winograd twice", "strided", "depthwise", "rows", "dense", "few rows"]
)
def test_special_values_reach_what_they_should(name: str, value: float) -> None:
    """Where a result is finite, infinite or NaN in the interpreter it is so here."""
    shape, layer, _ = LAYERS[name]
    model, feed = _made(shape, layer)
    feed["x"][(0, 1, *(3 for _ in shape[2:]))] = value
    (want,), _ = interpreted(model, {}, [feed])
    got = planned(model, feed, **CHOICES).run(feed)
    for key, array in want.items():
        special = ~np.isfinite(array)
        np.testing.assert_array_equal(~np.isfinite(got[key]), special, err_msg=key)
        np.testing.assert_array_equal(got[key][special], array[special], err_msg=key)


def test_state_that_a_product_updates_is_read_before_it_is_written() -> None:
    """S' = 0.9 S + Aᵀ B: the product is fused with the update, whose result replaces S in place."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="update")
    g = Builder(graph)
    rng = np.random.default_rng(0)
    a, b = (g.input(n, ir.DataType.FLOAT, (200, 256)) for n in ("a", "b"))
    s = g.initializer("s", rng.standard_normal((256, 256)).astype(np.float32))
    graph.inputs.append(s)
    g.output(g.Add(g.Mul(s, 0.9), g.Gemm(a, b, transA=1)), "s.next")
    model = ir.Model(graph, ir_version=10)
    feed = {n: rng.standard_normal((200, 256)).astype(np.float32) for n in "ab"}
    _, want = interpreted(model, {"s": "s.next"}, [feed] * 3)
    plan = planned(model, feed, {"s": "s.next"})
    for _ in range(3):
        plan.run(feed)
    np.testing.assert_allclose(plan.fixed["s"], want["s"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("op_type", ["MatMul", "Transpose", "Softmax", "Slice", "Concat"])
def test_state_that_its_own_update_reads_elsewhere(op_type: str) -> None:
    """Results whose elements depend on other elements of the state that they replace."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="update")
    g = Builder(graph)
    rng = np.random.default_rng(0)
    x = g.input("x", ir.DataType.FLOAT, (24, 24))
    s = g.initializer("s", rng.standard_normal((24, 24)).astype(np.float32))
    graph.inputs.append(s)
    updates: dict[str, Callable[[], ir.Value]] = {
        "MatMul": lambda: g.Mul(g.MatMul(s, s), 0.1),
        "Transpose": lambda: g.Add(g.Transpose(s, perm=[1, 0]), x),
        "Softmax": lambda: g.Softmax(s, axis=0),
        "Slice": lambda: g.Add(g.Concat(g.Slice(s, [1], [24], [0]), g.Slice(s, [0], [1], [0]), axis=0), x),
        "Concat": lambda: g.Concat(g.Slice(s, [12], [24], [0]), g.Slice(s, [0], [12], [0]), axis=0),
    }
    g.output(updates[op_type](), "s.next")
    g.output(g.ReduceSum(g.Mul(s, x), [0], keepdims=0), "y")
    model = ir.Model(graph, ir_version=10)
    feed = {"x": rng.standard_normal((24, 24)).astype(np.float32)}
    outputs, want = interpreted(model, {"s": "s.next"}, [feed] * 4)
    plan = planned(model, feed, {"s": "s.next"})
    for expected in outputs:
        np.testing.assert_allclose(plan.run(feed)["y"], expected["y"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(plan.fixed["s"], want["s"], rtol=1e-4, atol=1e-5)
