"""Files that take one sample at a time become files of batches where that is sound."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onward.engine import Session
from onward.model import from_bytes
from onward.passes import open_batch
from onward.runs.fixing import opened

BODIES = {
    "reshape": "h = MatMul(x, w) f = Reshape(h, flat) y = Softmax(f)",
    "heads": "h = MatMul(x, w) s = Reshape(h, heads) m = Reshape(s, merged) t = Tanh(m) y = Reshape(t, flat)",
    "elements": "h = MatMul(x, w) y = Flatten(h)",
}


def _model(body: str) -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 4, 3] x) => (float[1, 24] y)
    <int64[2] flat = {{1, 24}}, int64[2] eins = {{-1, 1}}, int64[1] second = {{1}},
     float[4] scales = {{1.0, 1.0, 1.0, 1.0}}, int64[2] pieces = {{4, 3}}, int64[3] whole = {{1, 4, 3}},
     int64[4] heads = {{1, 4, 2, 3}}, int64[3] merged = {{4, 2, 3}}>
    {{ {body} }}"""
    proto = onnx.parser.parse_model(text)
    w = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return from_bytes(proto.SerializeToString())


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_batch_is_its_samples(body: str) -> None:
    model = _model(body)
    found = opened(model)
    assert found is not None
    assert [str(v.shape[0]) for v in (*found.graph.inputs, *found.graph.outputs)] == ["N", "N"]
    x = np.random.default_rng(1).standard_normal((5, 4, 3)).astype(np.float32)
    with Session(model) as single, Session(found) as several:
        each = np.concatenate([single.run({"x": x[i : i + 1]})["y"] for i in range(5)])
        np.testing.assert_allclose(several.run({"x": x})["y"], each, rtol=1e-5, atol=1e-6)


def test_samples_that_depend_on_each_other_are_left() -> None:
    assert opened(_model("h = MatMul(x, w) f = Reshape(h, flat) y = LogSoftmax<axis = 0>(f)")) is None


HIDDEN = {
    "threshold": """low = Constant<value_floats = [-1e6]>() m = ReduceMean<axes = [0], keepdims = 1>(x)
        far = Less(m, low) z = Where(far, low, x) h = MatMul(z, w) y = Flatten(h)""",
    "any": """m = Equal(x, x) n = Cast<to = 6>(m) first = ReduceMax<axes = [0], keepdims = 1>(n)
        f = Cast<to = 1>(first) z = Mul(x, f) h = MatMul(z, w) y = Flatten(h)""",
    "quantised": """h = MatMul(x, w) f = Flatten(h) q, s, p = DynamicQuantizeLinear(f)
        big = ArgMax<axis = 1, keepdims = 1>(q) c = Cast<to = 1>(big) zero = Sub(f, f) y = Add(zero, c)""",
    "of the first": """first = Constant<value_ints = [0]>() one = Gather(x, first)
        h = MatMul(x, w) f = Flatten(h)
        low = Constant<value_float = -1e6>() least = ReduceMin<axes = [1, 2], keepdims = 0>(one)
        column = Reshape(least, eins) far = Less(column, low) y = Where(far, low, f)""",
    "running": """low = Constant<value_float = -1e6>() axis = Constant<value_int = 0>() sums = CumSum(x, axis)
        far = Less(sums, low) z = Where(far, low, x) h = MatMul(z, w) y = Flatten(h)""",
}


@pytest.mark.parametrize("body", HIDDEN.values(), ids=HIDDEN)
def test_samples_that_meet_where_no_usual_output_shows_it_are_left(body: str) -> None:
    """With random numbers outputs are those of single samples in nearly all of these: that is no proof."""
    assert opened(_model(body)) is None


KNOWN_BY_TRYING = {
    "resized": """four = Unsqueeze(x, second) r = Resize(four, , scales) s = Squeeze(r, second)
        h = MatMul(s, w) y = Flatten(h)""",
    "windows": "p = Reshape(x, pieces) s = Softmax(p) b = Reshape(s, whole) h = MatMul(b, w) y = Flatten(h)",
}


@pytest.mark.parametrize("body", KNOWN_BY_TRYING.values(), ids=KNOWN_BY_TRYING)
def test_what_the_proof_does_not_reach_is_tried(body: str) -> None:
    model = _model(body)
    found = opened(model)
    assert found is not None
    x = np.random.default_rng(1).standard_normal((5, 4, 3)).astype(np.float32)
    with Session(model) as single, Session(found) as several:
        each = np.concatenate([single.run({"x": x[i : i + 1]})["y"] for i in range(5)])
        np.testing.assert_allclose(several.run({"x": x})["y"], each, rtol=1e-5, atol=1e-6)


def test_a_body_that_samples_may_choose_is_left() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 4] x) => (float[1, 4] y) {
        s = ReduceSum<keepdims = 0>(x) zero = Constant<value_float = 0.0>() c = Less(s, zero)
        y = If (c) <then_branch = a () => (float[1, 4] t) { t = Neg(x) },
                    else_branch = b () => (float[1, 4] e) { e = Identity(x) }>
    }"""
    assert opened(from_bytes(onnx.parser.parse_model(text).SerializeToString())) is None


def test_a_batch_that_is_open_or_larger_is_none() -> None:
    for dims in ("N", "2"):
        text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{dims}, 4] x) => (float[{dims}, 4] y) {{ y = Relu(x) }}"""
        assert open_batch(from_bytes(onnx.parser.parse_model(text).SerializeToString())) is None
