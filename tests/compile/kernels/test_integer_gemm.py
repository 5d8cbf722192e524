"""Products of bytes against NumPy's, over shapes with tails; and plans that come to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onward.compile.codegen.target import has_byte_dots, host_target
from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.graph import Array
from onward.model import from_bytes

pytestmark = pytest.mark.skipif(
    not has_byte_dots(host_target()), reason="no instruction for products of bytes"
)
_RNG = np.random.default_rng(8)


def _quantised(
    m: int, k: int, n: int, *, by_column: bool, x_type: Any = np.uint8, zero: int = 100, bias: bool = True
) -> tuple[bytes, Array]:
    """x · w + b behind Relu, both sides quantised; and an x that reaches the ends of its range."""
    extent = (n,) if by_column else ()
    initial: dict[str, Any] = {
        "w": _RNG.integers(-128, 128, (k, n)).astype(np.int8),
        "ws": (_RNG.random(extent) * 0.01 + 0.001).astype(np.float32),
        "wz": np.zeros(extent, np.int8),
        "xs": np.float32(0.02),
        "xz": x_type(zero),
        "b": _RNG.standard_normal(n).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["p"], name="product"),
        helper.make_node("Add", ["p", "b"], ["a"]) if bias else helper.make_node("Neg", ["p"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["M", k])],
        [helper.make_tensor_value_info("y", 1, ["M", n])],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in initial.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = (_RNG.standard_normal((m, k)) * 2).astype(np.float32)
    x.reshape(-1)[:4] = [np.inf, -np.inf, np.nan, 0.0]
    return model.SerializeToString(), x


def _exact(model: bytes, x: Array) -> Array:
    """The result with sums in float64, which are exact."""
    graph = from_bytes(model).graph
    kept = {n: v.const_value.numpy() for n, v in graph.initializers.items() if v.const_value is not None}
    zero = kept["xz"].astype(np.float64)
    info = np.iinfo(kept["xz"].dtype)
    whole = (
        np.where(np.isnan(x), info.min, np.clip(np.rint(x / kept["xs"]) + zero, info.min, info.max)) - zero
    )
    product = (whole @ kept["w"].astype(np.float64)) * (kept["xs"] * kept["ws"])
    biased = product + kept["b"] if any(n.op_type == "Add" for n in graph) else -product
    return np.asarray(np.maximum(biased, 0))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 32, 16), (7, 33, 17), (50, 70, 65), (97, 130, 200), (49, 64, 128), (3, 512, 47)]
)
@pytest.mark.parametrize("by_column", [True, False])
def test_products(m: int, k: int, n: int, by_column: bool, threads: int) -> None:
    model, x = _quantised(m, k, n, by_column=by_column)
    engine = CompiledEngine(from_bytes(model), threads=threads)
    got = engine.run({"x": x})["y"]
    np.testing.assert_allclose(got, _exact(model, x), rtol=3e-6, atol=3e-6)
    assert _calls(engine, x, "integer_gemm") == 1


@pytest.mark.parametrize(("x_type", "zero"), [(np.int8, -3), (np.int8, 127), (np.uint8, 0), (np.uint8, 255)])
def test_types_and_zero_points(x_type: Any, zero: int) -> None:
    model, x = _quantised(20, 64, 48, by_column=True, x_type=x_type, zero=zero, bias=False)
    got = CompiledEngine(from_bytes(model)).run({"x": x})["y"]
    np.testing.assert_allclose(got, _exact(model, x), rtol=3e-6, atol=3e-6)


def test_sums_are_exact_where_floats_round() -> None:
    """All results but the integers' own rounding: one rounding each, whatever the depth."""
    model, x = _quantised(8, 4000, 16, by_column=False, bias=False)
    got = CompiledEngine(from_bytes(model)).run({"x": x})["y"]
    np.testing.assert_allclose(got, _exact(model, x), rtol=2e-7)


def test_small_products_stay_floats() -> None:
    model, x = _quantised(8, 16, 16, by_column=False)
    engine = CompiledEngine(from_bytes(model))
    want = Interpreter(from_bytes(model).graph).run({"x": x})["y"]
    np.testing.assert_allclose(engine.run({"x": x})["y"], want, rtol=1e-5, atol=1e-5)
    assert _calls(engine, x, "integer_gemm") == 0


def _calls(engine: CompiledEngine, x: Array, name: str) -> int:
    plan = engine.plan({"x": x.shape})
    assert plan is not None
    return sum(name in str(row) for row in plan.spec.rows)


_CONVOLUTIONS = [
    ((2, 16, 9, 7), (20, 16, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((1, 32, 14, 14), (64, 32, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((3, 64, 7, 7), (70, 64, 1, 1), {}),
    ((2, 48, 8, 8), (16, 48, 1, 1), {"strides": [2, 2]}),
    ((1, 16, 12, 11), (33, 16, 3, 2), {"dilations": [2, 3], "pads": [2, 1, 0, 3]}),
    ((2, 16, 30), (40, 16, 3), {"pads": [1, 1], "strides": [2]}),
    ((2, 3, 33, 30), (64, 3, 7, 7), {"pads": [3] * 4, "strides": [2, 2]}),
    ((1, 5, 9, 9), (17, 5, 3, 3), {"dilations": [2, 2]}),
    ((1, 23, 5, 6), (48, 23, 2, 3), {}),
]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), _CONVOLUTIONS, ids=str)
def test_convolutions(x_shape: Any, w_shape: Any, attributes: dict[str, Any], threads: int) -> None:
    n = w_shape[0]
    initial: dict[str, Any] = {
        "w": _RNG.integers(-128, 128, w_shape).astype(np.int8),
        "ws": (_RNG.random(n) * 0.01 + 0.001).astype(np.float32),
        "wz": np.zeros(n, np.int8),
        "b": _RNG.integers(-9000, 9000, n).astype(np.int32),
        "xs": np.float32(0.02),
        "xz": np.uint8(77),
    }
    initial["bs"] = initial["ws"] * initial["xs"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0),
        helper.make_node("Conv", ["d", "wd", "bd"], ["c"], **attributes),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, x_shape)],
        [helper.make_tensor_value_info("y", 1, [None] * len(x_shape))],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in initial.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = from_bytes(proto.SerializeToString())
    x = (_RNG.standard_normal(x_shape) * 2).astype(np.float32)
    engine = CompiledEngine(model, threads=threads)
    want = Interpreter(model.graph).run({"x": x})["y"]
    np.testing.assert_allclose(engine.run({"x": x})["y"], want, rtol=1e-5, atol=1e-4)
    assert _calls(engine, x, "integer_convolution") == 1
