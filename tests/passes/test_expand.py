from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.train import networks

from onward.autodiff import training_step
from onward.engine import Interpreter, StepSession
from onward.graph import ONWARD_DOMAIN, Builder, find
from onward.passes import expand_onward
from onward.train import SGD, CrossEntropy


def test_the_model_has_standard_operators_only_and_the_same_surface() -> None:
    names = ["conv.weight", "bn.scale", "bn.bias", "head.weight", "head.bias"]
    step = training_step(
        networks.norm_net(), {"scores": CrossEntropy()}, SGD(momentum=0.9), names, expose_gradients=True
    )
    model = expand_onward(step.model)
    assert any(n.domain == ONWARD_DOMAIN for n in step.model.graph)
    assert dict(model.graph.opset_imports) == {"": 21}
    assert not any(n.domain for n in model.graph)
    for part in ("inputs", "outputs"):
        mine, theirs = getattr(model.graph, part), getattr(step.model.graph, part)
        assert [(v.name, v.dtype, v.shape) for v in mine] == [(v.name, v.dtype, v.shape) for v in theirs]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    rng = np.random.default_rng(0)
    feeds = {
        "image": rng.standard_normal((5, 1, 6, 6)).astype(np.float32),
        "target": rng.integers(0, 3, 5),
        "learning_rate": np.array(0.1, np.float32),
        "step": np.array(7),
        "seed": np.array(1),
    }
    sessions = [StepSession(m, step.bindings) for m in (step.model, model)]
    left, right = (s.run(feeds) for s in sessions)
    assert left.keys() == right.keys()
    for name, array in {**left, **sessions[0].state}.items():
        other = {**right, **sessions[1].state}[name]
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_body_that_returns_an_operand_leaves_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find(ONWARD_DOMAIN, "SGDUpdate", 1), "expand", lambda self, g, P, G, learning_rate: P)
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="test"))
    x = g.input("x", ir.DataType.FLOAT, (2,))
    half = g.Mul(x, 0.5)
    g.output(half, "half")
    g.output(g.onward.SGDUpdate(half, x, g.const(1.0, ir.DataType.FLOAT)), "new")
    model = expand_onward(ir.Model(g.graph, ir_version=10))
    assert [v.name for v in model.graph.outputs] == ["half", "new"]
    results = Interpreter(model.graph).run({"x": np.array([2, 4], np.float32)})
    assert {k: v.tolist() for k, v in results.items()} == {"half": [1, 2], "new": [1, 2]}
