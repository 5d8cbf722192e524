"""Operators without a class, whose schema has a body: expanded before anything runs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onward.autodiff import gradients
from onward.engine import Session
from onward.errors import UnsupportedError
from onward.graph import Builder, canonical_graph, find, has_body
from onward.model import from_bytes

BODY = "SwiGLU"
"""An operator that has no class; another has to take its place here once it has one."""

X = np.random.default_rng(3).normal(size=(2, 3, 6)).astype(np.float32)


def _value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], opset: int = 28) -> ir.Model:
    inputs = [_value("x", 2, 3, 6), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    imports = [helper.make_opsetid("", opset)]
    return from_bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())


def test_it_has_no_class() -> None:
    assert has_body("", BODY, 28)
    assert not has_body("", BODY, 27), "it is not there yet"
    assert not has_body("", "Relu", 28)
    assert not has_body("", "NoSuchThing", 28)
    with pytest.raises(UnsupportedError, match="not implemented"):
        find("", BODY, 28)


@pytest.mark.parametrize("engine", ["compiled", "interpreter"])
def test_two_in_a_row_and_one_in_a_branch(engine: str) -> None:
    """Names are free again each time, and a branch's body reads what is around it."""
    branch = helper.make_graph(
        [helper.make_node("SwiGLU", ["r", "r"], ["inside"], name="same")],
        "then",
        [],
        [_value("inside", 2, 3, 6)],
    )
    other = helper.make_graph(
        [helper.make_node("SwiGLU", ["x", "x"], ["inside2"], name="same2")],
        "else",
        [],
        [_value("inside2", 2, 3, 6)],
    )
    model = _model(
        [
            helper.make_node("SwiGLU", ["x", "x"], ["a"], name="first"),
            helper.make_node("Neg", ["x"], ["r"]),
            helper.make_node("SwiGLU", ["r", "r"], ["b"], name="second"),
            helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=other),
        ],
        [_value(name, 2, 3, 6) for name in "abd"],
    )
    with Session(model, engine=engine) as session:  # type: ignore[arg-type]
        for c in (True, False):
            got = session.run({"x": X, "c": np.array(c)})
            want = _swiglu(X), _swiglu(-X), _swiglu(-X if c else X)
            for name, expected in zip("abd", want, strict=True):
                np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-6)


def _swiglu(x: np.ndarray) -> np.ndarray:
    gate = x.astype(np.float64)
    return gate / (1 + np.exp(-gate)) * gate


def test_the_model_stays_as_it_was() -> None:
    model = _model([helper.make_node("SwiGLU", ["x", "x"], ["a"])], [_value("a", 2, 3, 6)])
    before = ir.to_proto(model).SerializeToString()
    form = canonical_graph(model.graph)
    assert "SwiGLU" not in {node.op_type for node in form}
    assert [v.name for v in form.outputs] == ["a"]
    assert all(v.type is not None for node in form for v in node.outputs)
    assert ir.to_proto(model).SerializeToString() == before


def test_its_gradient_is_that_of_the_body() -> None:
    model = _model([helper.make_node("SwiGLU", ["x", "x"], ["a"])], [_value("a", 2, 3, 6)])
    g = Builder(canonical_graph(model.graph))
    y = g.graph.outputs[0]
    (dx,) = gradients(g, {y: g.const(np.ones((2, 3, 6), np.float32))}, [g.graph.inputs[0]])
    assert dx is not None
    g.output(dx, "dx")
    got = Session(ir.Model(g.graph, ir_version=10)).run({"x": X, "c": np.array(True)})["dx"]
    step = 1e-5
    direction = np.random.default_rng(4).normal(size=X.shape)
    wide = X.astype(np.float64)
    slope = (_swiglu(wide + step * direction) - _swiglu(wide - step * direction)).sum() / (2 * step)
    np.testing.assert_allclose((got * direction).sum(), slope, rtol=1e-4)


def test_what_is_missing_besides_is_named_at_once() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 28, "my": 1})
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 6]))
    graph.inputs.append(x)
    nodes = [
        ir.node("SwiGLU", [x, x]),
        ir.node("Nothing", [x], domain="my"),
        ir.node("Neither", [x], domain="my"),
    ]
    graph.extend(nodes)
    with pytest.raises(UnsupportedError) as error:
        canonical_graph(graph)
    assert "Nothing" in str(error.value)
    assert "Neither" in str(error.value)
    assert "SwiGLU" not in str(error.value)
