"""`Gradient` of ai.onnx.preview.training: what the standard's text says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.autodiff import expand_gradients
from onward.engine import Session
from onward.errors import InvalidModelError, UnsupportedError
from onward.model import from_bytes

TRAINING = "ai.onnx.preview.training"


def model_of(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[int]], outputs: list[str], **weights: Any
) -> ir.Model:
    def info(name: str, shape: list[int] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "asked",
        [info(name, shape) for name, shape in inputs.items()],
        [info(name, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(a, np.float32), name) for name, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", 12), helper.make_opsetid(TRAINING, 1)]
    return from_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def ask(inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Gradient", inputs, outputs, name="ask", domain=TRAINING, **attributes)


W = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
X = np.array([[0.3, -0.7], [1.2, 0.1], [-0.4, 0.9]], np.float32)
CUBE = [
    helper.make_node("MatMul", ["x", "w"], ["h"]),
    helper.make_node("Mul", ["h", "h"], ["q"]),
    helper.make_node("Mul", ["q", "h"], ["c"]),
    helper.make_node("ReduceSum", ["c"], ["y"], keepdims=0),
]


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_by_an_input_and_by_an_initializer(engine: Any) -> None:
    nodes = [*CUBE, ask(["x", "w"], ["dx", "dw"], xs=["x", "w"], y="y")]
    found = Session(model_of(nodes, {"x": [3, 2]}, ["y", "dx", "dw"], w=W), engine=engine).run({"x": X})
    h = X @ W
    np.testing.assert_allclose(found["dx"], 3 * h**2 @ W.T, rtol=1e-5)
    np.testing.assert_allclose(found["dw"], X.T @ (3 * h**2), rtol=1e-5)
    assert found["y"] == pytest.approx((h**3).sum(), rel=1e-5)


def test_by_a_value_inside_and_used_by_later_nodes() -> None:
    nodes = [
        *CUBE,
        ask(["h"], ["dh"], xs=["h"], y="y"),
        helper.make_node("Neg", ["dh"], ["down"]),
    ]
    found = Session(model_of(nodes, {"x": [3, 2]}, ["down"], w=W)).run({"x": X})
    np.testing.assert_allclose(found["down"], -3 * (X @ W) ** 2, rtol=1e-5)


def test_second_order() -> None:
    nodes = [
        *CUBE,
        ask(["h"], ["dh"], xs=["h"], y="y"),
        helper.make_node("ReduceSum", ["dh"], ["s"], keepdims=0),
        helper.make_node("Gradient", ["h"], ["ddh"], name="again", domain=TRAINING, xs=["h"], y="s"),
    ]
    found = Session(model_of(nodes, {"x": [3, 2]}, ["ddh"], w=W)).run({"x": X})
    np.testing.assert_allclose(found["ddh"], 6 * (X @ W), rtol=1e-5)


def test_at_another_value() -> None:
    """The fourth picture of the specification: the derivative where H is H_1."""
    nodes = [*CUBE, ask(["at"], ["dh"], xs=["h"], y="y")]
    at = np.full((3, 2), 2.0, np.float32)
    found = Session(model_of(nodes, {"x": [3, 2], "at": [3, 2]}, ["y", "dh"], w=W)).run({"x": X, "at": at})
    np.testing.assert_allclose(found["dh"], 3 * at**2)
    assert found["y"] == pytest.approx(((X @ W) ** 3).sum(), rel=1e-5)  # the forward pass is as it was


def test_what_zs_name_is_held() -> None:
    """q = h·h depends on h; as one of zs it does not: only the direct use of h counts."""
    nodes = [*CUBE, ask(["h", "q"], ["dh"], xs=["h"], zs=["q"], y="y")]
    found = Session(model_of(nodes, {"x": [3, 2]}, ["dh"], w=W)).run({"x": X})
    np.testing.assert_allclose(found["dh"], (X @ W) ** 2, rtol=1e-5)


def test_of_several_elements_and_of_what_does_not_depend() -> None:
    nodes = [*CUBE, ask(["h", "v"], ["dh", "dv"], xs=["h", "v"], y="c")]
    found = Session(model_of(nodes, {"x": [3, 2], "v": [2]}, ["dh", "dv"], w=W)).run(
        {"x": X, "v": np.ones(2, np.float32)}
    )
    np.testing.assert_allclose(found["dh"], 3 * (X @ W) ** 2, rtol=1e-5)
    np.testing.assert_array_equal(found["dv"], np.zeros(2, np.float32))


def test_a_skipped_output() -> None:
    nodes = [*CUBE, ask(["x", "w"], ["", "dw"], xs=["x", "w"], y="y")]
    found = Session(model_of(nodes, {"x": [3, 2]}, ["dw"], w=W)).run({"x": X})
    np.testing.assert_allclose(found["dw"], X.T @ (3 * (X @ W) ** 2), rtol=1e-5)


def test_a_model_without_any_is_the_same() -> None:
    model = model_of(CUBE, {"x": [3, 2]}, ["y"], w=W)
    assert expand_gradients(model) is model


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        (ask(["x"], ["d"], xs=["none"], y="y"), InvalidModelError, "'ask', operator Gradient.*'none' is no"),
        (ask(["x"], ["d"], xs=["x"], y="nowhere"), InvalidModelError, "'nowhere' is no value"),
        (ask(["x", "w"], ["d"], xs=["x"], y="y"), InvalidModelError, "2 inputs for 1 names"),
        (ask(["x"], ["d"], xs=["x"], y="count"), UnsupportedError, "'count' is not of a floating-point type"),
    ],
)
def test_what_cannot_be_asked(node: onnx.NodeProto, error: type[Exception], message: str) -> None:
    nodes = [*CUBE, helper.make_node("Size", ["x"], ["count"]), node]
    with pytest.raises(error, match=message):
        Session(model_of(nodes, {"x": [3, 2]}, ["d"], w=W))
