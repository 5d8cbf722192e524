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
    <int64[2] flat = {{1, 24}}, int64[4] heads = {{1, 4, 2, 3}}, int64[3] merged = {{4, 2, 3}}>
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


def test_a_batch_that_is_open_or_larger_is_none() -> None:
    for dims in ("N", "2"):
        text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{dims}, 4] x) => (float[{dims}, 4] y) {{ y = Relu(x) }}"""
        assert open_batch(from_bytes(onnx.parser.parse_model(text).SerializeToString())) is None
