from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onward.errors import ShapeError, UnsupportedError
from onward.graph import dims_of, dtype_of, infer_node


def value(name: str, dims: list | None, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=None if dims is None else ir.Shape(dims))


def inferred(
    op_type: str, *inputs: ir.Value | None, outputs: int = 1, known: dict | None = None, **attributes
) -> ir.Node:
    node = ir.node(op_type, list(inputs), attributes, num_outputs=outputs, name="here")
    infer_node(node, 21, known)
    return node


def test_one_value_may_be_several_operands() -> None:
    x = value("x", ["N", 3])
    assert dims_of(inferred("Mul", x, x).outputs[0]) == ("N", 3)


def test_unnamed_values_and_absent_operands() -> None:
    x = value("", [2, 3])
    assert dims_of(inferred("Clip", x, None, None).outputs[0]) == (2, 3)
    y, mask = inferred("Dropout", x, None, None, outputs=2).outputs
    assert (dims_of(y), dims_of(mask), dtype_of(mask)) == ((2, 3), (2, 3), ir.DataType.BOOL)


def test_contents_of_constants_and_known_values_decide_shapes() -> None:
    x, shape = value("x", [2, 3]), value("shape", [2], ir.DataType.INT64)
    assert dims_of(inferred("Reshape", x, shape).outputs[0]) == (None, None)
    content = ir.tensor(np.array([3, -1]))
    assert dims_of(inferred("Reshape", x, shape, known={shape: content}).outputs[0]) == (3, 2)
    shape.const_value = content
    assert dims_of(inferred("Reshape", x, shape).outputs[0]) == (3, 2)


def test_unknown_ranks_stay_unknown() -> None:
    assert dims_of(inferred("Add", value("x", None), value("y", [3])).outputs[0]) is None


def test_errors_name_node_operator_opset_and_operands() -> None:
    with pytest.raises(
        ShapeError,
        match=r"node 'here', operator Add, opset 21: .*\(inputs: x: float\[N, 3\], y: float\[\?, 4\]\)",
    ):
        inferred("Add", value("x", ["N", 3]), value("y", [None, 4]))
    with pytest.raises(ShapeError, match=r"x: float\[2\], y: int64\[2\]"):
        inferred("Add", value("x", [2]), value("y", [2], ir.DataType.INT64))
    with pytest.raises(UnsupportedError, match=r"operator Nothing, opset 21: domain 'ai\.onnx'"):
        inferred("Nothing", value("x", [2]))


def test_what_was_inferred_before_does_not_answer_for_other_attributes_contents_or_types() -> None:
    for _ in range(2):
        x = value("x", [2, 3])
        assert dims_of(inferred("Concat", x, x, axis=0).outputs[0]) == (4, 3)
        assert dims_of(inferred("Concat", x, x, axis=1).outputs[0]) == (2, 6)
        for target in ([6], [3, 2], [1, 6]):
            shape = value("shape", [len(target)], ir.DataType.INT64)
            known = {shape: ir.tensor(np.array(target))}
            assert dims_of(inferred("Reshape", x, shape, known=known).outputs[0]) == tuple(target)
        assert dtype_of(inferred("Abs", value("x", [2], ir.DataType.INT8)).outputs[0]) == ir.DataType.INT8
        assert dtype_of(inferred("Abs", value("x", [2])).outputs[0]) == ir.DataType.FLOAT
        node = ir.node("Dropout", [x], outputs=[value("y", None), value("", None)], name="here")
        node.outputs[1].type = None
        infer_node(node, 21)
        assert (dims_of(node.outputs[0]), node.outputs[1].type) == ((2, 3), None)


def test_each_node_has_shapes_of_its_own() -> None:
    first, second = (inferred("Abs", value("x", [2, 3])).outputs[0] for _ in range(2))
    first.shape = ir.Shape([7])
    assert dims_of(second) == (2, 3)
    assert dims_of(inferred("Abs", value("x", [2, 3])).outputs[0]) == (2, 3)
