"""Quantised models in floats and back, and what their training is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from tests.ops.harness import Case, model_of

from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.graph import Array
from onward.model import from_bytes, load
from onward.passes import in_floats, in_integers, to_inference
from onward.train import Trainer
from onward.verify import export

_RNG = np.random.default_rng(5)


def _f(*shape: int) -> Array:
    return _RNG.standard_normal(shape).astype(np.float32)


def qdq_network(per_axis: bool = True) -> bytes:
    """A convolution, Relu and a dense layer, quantised as onnxruntime's tools do it."""
    w, v = _f(4, 2, 3, 3), _f(4, 3)
    w_scale = np.abs(w).max((1, 2, 3)) / 127 if per_axis else np.asarray(np.abs(w).max() / 127)
    v_scale = np.abs(v).max(0) / 127 if per_axis else np.asarray(np.abs(v).max() / 127)
    spread = w_scale.reshape(-1, 1, 1, 1) if per_axis else w_scale
    initial: dict[str, Any] = {
        "w_q": np.rint(w / spread).astype(np.int8),
        "w_s": w_scale.astype(np.float32),
        "w_z": np.zeros(w_scale.shape, np.int8),
        "b_q": np.asarray(_RNG.integers(-900, 900, 4), np.int32),
        "b_s": (w_scale * 0.02).astype(np.float32),
        "v_q": np.rint(v / v_scale).astype(np.int8),
        "v_s": v_scale.astype(np.float32),
        "v_z": np.zeros(v_scale.shape, np.int8),
        "x_s": np.float32(0.02),
        "x_z": np.uint8(120),
        "h_s": np.float32(0.05),
        "h_z": np.uint8(0),
    }
    if not per_axis:
        initial["b_s"] = np.float32(w_scale * 0.02)
    dq, q = "DequantizeLinear", "QuantizeLinear"
    nodes = [
        helper.make_node(q, ["x", "x_s", "x_z"], ["x_q"]),
        helper.make_node(dq, ["x_q", "x_s", "x_z"], ["x_d"]),
        helper.make_node(dq, ["w_q", "w_s", "w_z"], ["w"], axis=0),
        helper.make_node(dq, ["b_q", "b_s"], ["b"], axis=0),
        helper.make_node("Conv", ["x_d", "w", "b"], ["c"], pads=[1] * 4, name="conv"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node(q, ["r", "h_s", "h_z"], ["r_q"]),
        helper.make_node(dq, ["r_q", "h_s", "h_z"], ["r_d"]),
        helper.make_node("GlobalAveragePool", ["r_d"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node(dq, ["v_q", "v_s", "v_z"], ["v"], axis=1),
        helper.make_node("MatMul", ["f", "v"], ["y"], name="dense"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 2, 6, 6])],
        [helper.make_tensor_value_info("y", 1, ["N", 3])],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in initial.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize("per_axis", [True, False])
def test_floats_say_the_same(per_axis: bool) -> None:
    model = from_bytes(qdq_network(per_axis))
    x = _f(3, 2, 6, 6) * 3
    x[0, 0, 0, :3] = [np.nan, np.inf, -np.inf]
    want = Interpreter(model.graph).run({"x": x})["y"]
    floats = in_floats(model)
    assert not any(n.op_type.endswith("Linear") for n in floats.graph)
    np.testing.assert_allclose(Interpreter(floats.graph).run({"x": x})["y"], want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(CompiledEngine(model).run({"x": x})["y"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_axis", [True, False])
def test_there_and_back_is_the_same_file(per_axis: bool) -> None:
    model = from_bytes(qdq_network(per_axis))
    back = to_inference(in_floats(model, trainable=True))
    assert [n.op_type for n in back.graph] == [n.op_type for n in model.graph]
    kinds = [n.inputs[0].dtype for n in back.graph if n.op_type == "DequantizeLinear"]
    assert kinds == [n.inputs[0].dtype for n in model.graph if n.op_type == "DequantizeLinear"]
    x = _f(3, 2, 6, 6)
    want = Interpreter(model.graph).run({"x": x})["y"]
    np.testing.assert_array_equal(Interpreter(back.graph).run({"x": x})["y"], want)


def test_shared_and_computed_quantities_stay() -> None:
    graph = onnx.ModelProto.FromString(qdq_network())
    graph.graph.node.add().CopyFrom(helper.make_node("DequantizeLinear", ["v_q", "v_s"], ["again"], axis=1))
    graph.graph.output.append(helper.make_tensor_value_info("again", 1, [4, 3]))
    model = from_bytes(graph.SerializeToString())
    left = [n.outputs[0].name for n in in_floats(model).graph if n.op_type == "DequantizeLinear"]
    assert sorted(left) == ["again", "v"]


def test_a_quantised_file_trains_and_is_quantised_again(tmp_path: Path) -> None:
    source = tmp_path / "quantised.onnx"
    source.write_bytes(qdq_network())
    x, t = _f(16, 2, 6, 6), _f(16, 3)
    trainer = Trainer(str(source), "mse", "adam")
    assert set(trainer.trainable) == {"w", "b", "v"}
    losses = [
        trainer.fit((x, t), batch_size=16, progress=False, keep_optimizer_state=True) for _ in range(10)
    ]
    figures = [h.rows[-1]["loss"] for h in losses]
    assert figures[-1] < 0.95 * figures[0]
    export(trainer.model, tmp_path / "again.onnx", inputs={"x": x})
    again = load(tmp_path / "again.onnx")
    assert [n.op_type for n in again.graph] == [n.op_type for n in load(source).graph]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "again.onnx", options)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], trainer.predict(x)["y"], rtol=1e-4, atol=1e-5)


def test_straight_through() -> None:
    """Slope 1 where the rounded quotient is in the range, its ends included, and 0 outside."""
    x = np.array([0, 0.05, 0.15, 5, 12.74, 12.76, 13, -12.84, -12.86, -20, np.inf, np.nan], np.float32)
    want = np.array([1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0], np.float32)
    limits = [np.asarray(v, np.float32) for v in (0.1, -128, 127)]
    case = Case("FakeQuantize", [x, *limits], {"to": onnx.TensorProto.INT8}, domain="ai.onward", wrt=(0,))
    model = model_of(case, gradient=True)
    fed = {v.name or "": a for v, a in zip(model.graph.inputs, [x, *limits, np.ones_like(x)], strict=True)}
    for engine in (Interpreter(model.graph), CompiledEngine(model)):
        (slopes,) = (a for name, a in engine.run(fed).items() if "dx" in name or "grad" in name)
        np.testing.assert_array_equal(slopes, want)


def test_nothing_to_do() -> None:
    model = from_bytes(qdq_network())
    assert in_integers(model) is model
    assert in_floats(in_floats(model)).graph is not model.graph
