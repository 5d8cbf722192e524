"""Sequences whose tensors are known become tensors: they are planned, and gradients go through them."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onward.autodiff import training_step
from onward.engine import Session, StepSession
from onward.engine.compiled import CompiledEngine
from onward.model import from_bytes, upgrade
from onward.passes import fold_shapes
from onward.train import MSE, SGD

BODIES = {
    "a length": "s = SplitToSequence<axis = 1>(h, two) a = SequenceAt(s, last) b = SequenceAt(s, zero)"
    " y = Sub(a, b)",
    "lengths": "s = SplitToSequence<axis = -1>(h, lengths) a = SequenceAt(s, last) y = Relu(a)",
    "single slices": "s = SplitToSequence<axis = 1, keepdims = 0>(h) a = SequenceAt(s, one) y = Tanh(a)",
    "one piece": "s = SplitToSequence<axis = 1>(h, six) y = SequenceAt(s, zero)",
    "joined": "t = Tanh(h) s = SequenceConstruct(h, t) r = SequenceInsert(s, t, zero) q = SequenceErase(r)"
    " y = ConcatFromSequence<axis = 1>(q)",
    "stacked": "e = SequenceEmpty() t = Tanh(h) s = SequenceInsert(e, t) r = SequenceInsert(s, h)"
    " y = ConcatFromSequence<axis = -1, new_axis = 1>(r)",
    "counted": "s = SplitToSequence<axis = 1>(h, two) n = SequenceLength(s) f = Cast<to = 1>(n)"
    " y = Mul(h, f)",
    "twice the same": "s = SequenceConstruct(h, h) a = SequenceAt(s, zero) b = SequenceAt(s, one)"
    " y = Add(a, b)",
}


def _model(body: str, opset: int) -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g (float[N, 5] x) => (float[] y)
    <float[5, 6] w, int64 zero = {{0}}, int64 one = {{1}}, int64 last = {{-1}}, int64 two = {{2}},
     int64 six = {{6}}, int64[2] lengths = {{4, 2}}>
    {{ h = MatMul(x, w) {body} }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    w = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return from_bytes(proto.SerializeToString())


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_plan_and_gradients(body: str, opset: int) -> None:
    model = _model(body, opset)
    x = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    with Session(model, engine="interpreter") as session:
        expected = session.run({"x": x})["y"]
    engine = CompiledEngine(model)
    plan = engine.plan({"x": x.shape})
    assert plan is not None
    assert not [row.reason for row in plan.rows if row.reason]
    np.testing.assert_allclose(engine.run({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)
    engine.close()
    assert not any("Sequence" in node.op_type for node in fold_shapes(model).graph)

    step = training_step(upgrade(model), {"y": MSE()}, SGD(learning_rate=0.0), ["w"], expose_gradients=True)
    target = np.zeros_like(expected)
    feeds = {"x": x, step.targets["y"]: target, step.learning_rate: np.zeros((), np.float32)}
    feeds |= {
        name: np.zeros((), np.int64) for name in (step.step, step.seed, step.update) if name is not None
    }
    got = StepSession(step.model, step.bindings, engine="interpreter").run(feeds)[step.gradients["w"]]
    w, along = model.graph.initializers["w"], np.random.default_rng(2).standard_normal((5, 6))
    start, eps, values = w.const_value.numpy(), 1e-2, []
    for side in (1, -1):
        moved = model.clone()
        moved.graph.initializers["w"].const_value = ir.tensor(
            (start + side * eps * along).astype(np.float32), name="w"
        )
        with Session(moved, engine="interpreter") as session:
            values.append(float(np.mean(np.square(session.run({"x": x})["y"], dtype=np.float64))))
    assert np.vdot(got, along) == pytest.approx((values[0] - values[1]) / (2 * eps), rel=2e-2)


def test_two_outputs_that_are_one_tensor_keep_their_names() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[N, 4] x) => (float[N, 2] a, float[N, 2] b) <int64 two = {2}, int64 one = {1}, int64 last = {-1}>
    { s = SplitToSequence<axis = 1>(x, two) a = SequenceAt(s, one) b = SequenceAt(s, last) }"""
    model = from_bytes(onnx.parser.parse_model(text).SerializeToString())
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with Session(model) as session:
        found = session.run({"x": x})
    np.testing.assert_array_equal(found["a"], x[:, 2:])
    np.testing.assert_array_equal(found["b"], x[:, 2:])


def test_a_position_outside_is_told_by_the_run() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[N, 4] x) => (float[N, 2] a) <int64 two = {2}>
    { s = SplitToSequence<axis = 1>(x, two) a = SequenceAt(s, two) }"""
    model = from_bytes(onnx.parser.parse_model(text).SerializeToString())
    with Session(model) as session, pytest.raises(Exception, match="position 2 is not in -2…1"):
        session.run({"x": np.zeros((2, 4), np.float32)})
