"""Products and look-ups whose weights are integers, as a compiled engine rewrites them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onward.compile.codegen.target import has_byte_dots, host_target
from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.graph import Array, Builder
from onward.nn import zoo
from onward.passes import quantize_dynamic, quantize_weights, to_inference
from onward.passes.integer_weights import with_integer_weights

_SIZES = {"vocabulary_size": 300, "size": 64, "layers": 1, "heads": 2, "hidden": 96}
_SIZES |= {"length": 6, "num_classes": 3}


def _encoder() -> ir.Model:
    return to_inference(zoo.build("transformer_encoder", **_SIZES).model)


def _kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def _both(model: ir.Model, ids: Array) -> tuple[Array, Array, str]:
    """The results of the plan and of the interpreter, and the plan's calls."""
    name, output = model.graph.inputs[0].name or "", model.graph.outputs[0].name or ""
    engine = CompiledEngine(model, threads=1)
    got, want = engine.run({name: ids})[output], Interpreter(model.graph).run({name: ids})[output]
    plan = engine.plan({name: ids.shape})
    assert plan is not None
    engine.close()
    return got, want, str(plan.spec.rows)


def _ids(rows: int = 3) -> Array:
    return np.random.default_rng(1).integers(1, 300, (rows, 6))


@pytest.mark.parametrize("how", [{}, {"block": 32}, {"bits": 4}, {"bits": 4, "block": 16}], ids=str)
def test_an_encoder_keeps_no_floats_of_its_weights(how: dict[str, Any]) -> None:
    model = quantize_weights(_encoder(), **how)
    kinds = _kinds(with_integer_weights(model))
    assert "DequantizeLinear" not in kinds
    assert kinds["DequantizedMatMul"] + 1 == _kinds(model)["DequantizeLinear"]  # and one table
    got, want, calls = _both(model, _ids())
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert "numpy" not in calls.lower()


def test_what_others_read_stays() -> None:
    """A weight that is an output too, or whose product has a quantised left side."""
    model = quantize_weights(_encoder())
    maker = next(n for n in model.graph if n.op_type == "DequantizeLinear")
    model.graph.outputs.append(maker.outputs[0])
    assert _kinds(with_integer_weights(model))["DequantizeLinear"] == 1


def test_the_same_model_where_nothing_changes() -> None:
    model = _encoder()
    assert with_integer_weights(model, bytes_multiply=True) is model
    dynamic = quantize_dynamic(model)
    assert with_integer_weights(dynamic) is dynamic


def test_dynamic_products() -> None:
    model = quantize_dynamic(_encoder())
    kinds = _kinds(with_integer_weights(model, bytes_multiply=True))
    assert kinds["DynamicMatMul"] == _kinds(model)["MatMulInteger"] > 0
    assert kinds["MatMulInteger"] == kinds["DynamicQuantizeLinear"] == 0
    got, want, calls = _both(model, _ids())
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert ("integer_dots" in calls) == has_byte_dots(host_target())


@pytest.mark.skipif(not has_byte_dots(host_target()), reason="no instruction for products of bytes")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 64, 50), (7, 77, 130), (60, 200, 33), (97, 128, 64)])
def test_dynamic_sums_are_exact(m: int, k: int, n: int, threads: int) -> None:
    """Bit for bit: bytes as DynamicQuantizeLinear gives them, sums in int32, one rounding."""
    rng = np.random.default_rng(m)
    g = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="g")
    b = Builder(g)
    x = b.input("x", ir.DataType.FLOAT, ("M", k))
    q, _, zero = b.emit("DynamicQuantizeLinear", x, outputs=3)
    w = b.initializer("w", rng.integers(-128, 128, (k, n)).astype(np.int8))
    y = b.Cast(b.MatMulInteger(q, w, zero), to=int(ir.DataType.FLOAT))
    y.name = "y"
    g.outputs.append(y)
    model = ir.Model(g, ir_version=10)
    feed = rng.standard_normal((m, k)).astype(np.float32) * 3 + 1
    engine = CompiledEngine(model, threads=threads)
    plan = engine.plan({"x": feed.shape})
    assert plan is not None
    assert "integer_dots" in str(plan.spec.rows)
    want = Interpreter(model.graph).run({"x": feed})["y"]
    np.testing.assert_array_equal(engine.run({"x": feed})["y"], want)
    engine.close()
