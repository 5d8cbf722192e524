from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onward.errors import ShapeError
from onward.model import from_bytes, infer_shapes, to_bytes

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def load(text: str) -> ir.Model:
    return from_bytes(onnx.parser.parse_model(HEAD + text).SerializeToString(), name="net")


def shapes(model: ir.Model) -> dict[str, list[int | str | None]]:
    return {
        output.name or "": [dim if isinstance(dim, int) else dim.value for dim in output.shape]
        for node in model.graph.all_nodes()
        for output in node.outputs
        if output.shape is not None
    }


def test_symbolic_names_stay_and_data_is_propagated() -> None:
    model = load(
        """g (float[batch, 3, 8] x) => (float[a, b] y) {
            s = Shape<end = 1>(x)
            rest = Constant<value = int64[1] {24}>()
            target = Concat<axis = 0>(s, rest)
            y = Reshape(x, target)
        }"""
    )
    assert shapes(model)["y"] == ["a", 24]


def test_numbers_replace_declared_names() -> None:
    assert shapes(load("g (float[2, 3] x) => (float[n, m] y) { y = Relu(x) }"))["y"] == [2, 3]


def test_branches_are_inferred() -> None:
    model = load(
        """g (float[2, 3] x, bool c) => (float[p, q] y) {
            y = If (c) <then_branch = t () => (float[p, q] u) { m = Transpose(x) u = Transpose(m) },
                        else_branch = e () => (float[p, q] v) { v = Relu(x) }>
        }"""
    )
    assert shapes(model)["m"] == [3, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "g (float[2, 3] x, float[4, 5] w) => (float[a, b] y) { [mul] y = MatMul(x, w) }",
            r"node 'mul', operator MatMul, opset 21",
        ),
        (
            "g (float[2] x, float[3] w) => (float[a] y) { [plus] y = Add(x, w) }",
            r"node 'plus', operator Add, opset 21",
        ),
        (
            "g (float[2] x, int64[2] w) => (float[a] y) { [plus] y = Add(x, w) }",
            r"node 'plus', operator Add, opset 21",
        ),
        ("g (float[2] x) => (int64[2] y) { [relu] y = Relu(x) }", "net: "),
    ],
)
def test_contradictions_name_the_node(text: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message) as caught:
        load(text)
    assert "\n" not in str(caught.value)


def test_weights_take_no_part_and_stay() -> None:
    model = load(
        "g (float[n, 40] x) => (float[a, b] y) { y = MatMul(x, w) }".replace("x)", "x, float[40, 50] w)")
    )
    weight = model.graph.inputs[1]
    tensor = ir.Tensor(np.ones((40, 50), np.float32), name="w")
    weight.const_value = tensor
    model.graph.register_initializer(weight)
    del model.graph.inputs[1]
    before = to_bytes(model)
    model.graph.outputs[0].shape = None
    infer_shapes(model)
    assert shapes(model)["y"] == ["n", 50]
    assert model.graph.initializers["w"].const_value is tensor
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert len(to_bytes(model)) <= len(before)


def test_a_standard_function_whose_body_confuses_onnx() -> None:
    model = load("g (float[2, 3, 4, 4] x) => (float[2, 3, 4, 4] y) { y = MeanVarianceNormalization(x) }")
    assert shapes(model)["y"] == [2, 3, 4, 4]


def test_own_operators_leave_shapes_open() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        g (float[2] x) => (float[p] y) { m = own.Odd(x) y = Relu(m) }"""
    model = from_bytes(onnx.parser.parse_model(text).SerializeToString())
    assert "m" not in shapes(model)
