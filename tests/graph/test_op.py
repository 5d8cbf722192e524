from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onward.errors import InvalidModelError, UnsupportedError
from onward.graph import Op, bind, find, op, registered


def node(
    op_type: str, attributes: dict | None = None, inputs: int = 1, outputs: int = 1, domain: str = ""
) -> ir.Node:
    values = [ir.Value(name=f"x{i}") for i in range(inputs)]
    made = [ir.Value(name=f"y{i}") for i in range(outputs)]
    return ir.node(op_type, values, attributes or {}, outputs=made, name="here", domain=domain)


def test_find_gives_the_class_of_the_version_at_an_opset() -> None:
    assert 14 in find("", "BatchNormalization", 14).since
    assert 9 in find("", "BatchNormalization", 13).since
    assert find("ai.onnx", "Relu", 21) is find("", "Relu", 21)


@pytest.mark.parametrize(
    ("domain", "op_type", "opset", "message"),
    [
        ("", "Relu", onnx.defs.onnx_opset_version() + 1, "the newest opset known is"),
        (
            "",
            "Reluu",
            21,
            "Reluu of domain 'ai.onnx' does not exist at opset 21; known domains: ai.onnx, ",
        ),
        ("com.example", "Relu", 1, "does not exist"),
        ("com.microsoft.nchwc", "Conv", 1, "use the file that it was made from"),
        ("ai.onward", "SGDUpdate", 99, r"version 99 .*versions implemented: 1"),
        ("", "GroupNormalization", 18, r"version 18 \(opset 18, .*versions implemented: 21"),
    ],
)
def test_what_is_unknown_is_refused(domain: str, op_type: str, opset: int, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        find(domain, op_type, opset)


def test_bind_gives_attributes_as_a_file_holds_them() -> None:
    assert bind(node("LeakyRelu", {"alpha": 0.1}), 21).alpha == float(np.float32(0.1))
    assert bind(node("LeakyRelu"), 21).alpha == 0.01
    conv = bind(node("Conv", {"pads": [1, 1, 2, 2]}, inputs=2), 21)
    assert tuple(conv.pads) == (1, 1, 2, 2)


def test_a_version_has_its_own_attributes_only() -> None:
    with pytest.raises(InvalidModelError, match="opset 9: unknown attribute 'ceil_mode'"):
        bind(node("MaxPool", {"kernel_shape": [2], "ceil_mode": 1}), 9)
    assert bind(node("MaxPool", {"kernel_shape": [2], "ceil_mode": 1}), 10).ceil_mode == 1


def test_bind_counts_the_outputs_that_are_named() -> None:
    top = node("TopK", inputs=2, outputs=2)
    assert bind(top, 21).output_count == 2
    top.outputs[1].name = ""
    assert bind(top, 21).output_count == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            node("Relu", {"slope": 2.0}),
            r"node 'here', operator Relu, opset 21: unknown attribute 'slope'; it has",
        ),
        (node("Concat"), "node 'here', operator Concat, opset 21: required attribute 'axis' is missing"),
    ],
)
def test_bind_names_the_node_and_the_attribute(given: ir.Node, message: str) -> None:
    with pytest.raises(InvalidModelError, match=message):
        bind(given, 21)


def test_bind_refuses_references_to_a_functions_attributes() -> None:
    given = node("LeakyRelu")
    given.attributes["alpha"] = ir.RefAttr("alpha", "slope", ir.AttributeType.FLOAT)
    with pytest.raises(InvalidModelError, match="'alpha' refers to a function's attribute"):
        bind(given, 21)


def test_a_class_lacks_nothing_and_is_registered_once() -> None:
    with pytest.raises(TypeError, match=r"has no kernel\(\)"):
        op("Lacking", since=1)(type("Lacking", (Op,), {}))
    with pytest.raises(TypeError, match=r"has no infer\(\)"):
        op("Lacking", since=1, domain="ai.onward")(type("Lacking", (Op,), {"kernel": lambda self: None}))
    with pytest.raises(TypeError, match="Relu version 14 is registered twice"):
        op("Relu", since=14)(type("Relu", (Op,), {"kernel": lambda self, x: x}))
    assert not any(name == "Lacking" for _, name in registered())
