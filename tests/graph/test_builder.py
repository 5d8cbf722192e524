from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onward.engine import Interpreter
from onward.errors import ShapeError, UnsupportedError
from onward.graph import Builder, dims_of, dtype_of

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


@pytest.fixture
def g() -> Builder:
    return Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="test"))


def names(g: Builder) -> list[str]:
    nodes = list(g.graph)
    values = [*g.graph.inputs, *g.graph.initializers.values(), *(v for n in nodes for v in n.outputs)]
    return [n.name or "" for n in nodes] + [v.name or "" for v in values]


def test_values_have_types_shapes_and_names(g: Builder) -> None:
    x = g.input("x", FLOAT, ("N", 3))
    y = g.MatMul(x, np.ones((3, 5), np.float32))
    assert (dtype_of(y), dims_of(y)) == (FLOAT, ("N", 5))
    assert (y.name, y.producer().name) == ("MatMul:y", "MatMul")
    assert len(set(names(g))) == len(names(g))


def test_scopes_nest_and_end(g: Builder) -> None:
    x = g.input("x", FLOAT, (2,))
    with g.scope("outer"), g.scope("inner"):
        inside = g.Relu(x)
    assert inside.name == "outer/inner/Relu:y"
    with pytest.raises(ShapeError), g.scope("broken"):
        g.Add(x, np.ones(3, np.float32))
    assert g.Relu(x).name == "Relu:y"


def test_no_name_is_made_twice(g: Builder) -> None:
    x = g.input("x", FLOAT, (2,))
    for _ in range(3):
        x = g.Relu(x)
    assert len(set(names(g))) == len(names(g))
    assert g.unique("x") != "x"


def test_given_names_are_taken_too(g: Builder) -> None:
    x = g.input("x", FLOAT, (2,))
    (y,) = g.emit("Relu", x, name="Neg", outputs=["const"])
    assert (y.name, y.producer().name) == ("const", "Neg")
    assert g.unique("const") == "const_1"
    g.Neg(g.Add(y, np.ones(2, np.float32)))
    assert len(set(names(g))) == len(names(g))


def test_a_new_builder_knows_the_names_of_its_graph(g: Builder) -> None:
    x = g.input("x", FLOAT, (2,))
    g.initializer("w", np.ones(2, np.float32))
    g.Relu(x)
    again = Builder(g.graph)
    for taken in ("x", "w", "Relu", "Relu:y"):
        assert again.unique(taken) != taken


def test_equal_constants_are_one_and_others_are_not(g: Builder) -> None:
    one = g.const(1.0, FLOAT)
    assert g.const(np.float32(1)) is one
    others = [
        g.const(1.0, ir.DataType.DOUBLE),
        g.const([1.0], FLOAT),
        g.const(-0.0, FLOAT),
        g.const(0.0, FLOAT),
    ]
    assert len({id(v) for v in [one, *others]}) == 5


def test_numbers_take_the_type_of_their_siblings(g: Builder) -> None:
    x = g.input("x", ir.DataType.DOUBLE, (2, 3))
    i = g.input("i", ir.DataType.INT32, (2,))
    assert dtype_of(g.Mul(x, 2)) == ir.DataType.DOUBLE
    assert dtype_of(g.Add(i, 2)) == ir.DataType.INT32
    assert dims_of(g.ReduceSum(x, [1], keepdims=0)) == (2,)
    assert dtype_of(g.graph.initializers["const_2"]) == INT64
    assert dtype_of(g.Clip(x, -1, 1)) == ir.DataType.DOUBLE


def test_a_fraction_does_not_become_an_integer(g: Builder) -> None:
    i = g.input("i", INT64, (2,))
    assert dtype_of(g.Mul(i, 2.0)) == INT64
    with pytest.raises(ShapeError, match=r"operator Mul, opset 21: operand 1 is 0\.5, but its type is int64"):
        g.Mul(i, 0.5)


def test_absent_operands_and_outputs(g: Builder) -> None:
    x = g.input("x", FLOAT, (2, 4))
    y = g.Clip(x, None, 1.0)
    assert y.producer().inputs[1] is None
    assert len(g.Clip(x, None, None).producer().inputs) == 1
    scale = np.ones(4, np.float32)
    z, *absent = g.emit("LayerNormalization", x, scale, outputs=[None, "", ""])
    assert (dims_of(z), [v.name for v in absent]) == ((2, 4), ["", ""])
    z, mean, inverse = g.emit("LayerNormalization", x, scale, outputs=[None, "", None])
    assert (mean.name, dims_of(inverse)) == ("", (2, 1))
    g.output(z, "z")
    onnx.checker.check_model(ir.to_proto(ir.Model(g.graph, ir_version=10)), full_check=True)


def test_attributes_that_are_none_are_left_out(g: Builder) -> None:
    node = g.Softmax(g.input("x", FLOAT, (2, 3)), axis=None).producer()
    assert not node.attributes


def test_outputs_keep_what_is_named_already(g: Builder) -> None:
    x, w = g.input("x", FLOAT, (2,)), g.initializer("w", np.ones(2, np.float32))
    y = g.Relu(x)
    assert g.output(y, "y") is y
    assert g.output(y, "again").producer().op_type == "Identity"
    assert g.output(x, "copy").producer().op_type == "Identity"
    assert g.output(w, "weight").producer().op_type == "Identity"
    assert (x.name, w.name, y.name) == ("x", "w", "y")
    results = Interpreter(g.graph).run({"x": np.array([-1, 1], np.float32)})
    assert {k: v.tolist() for k, v in results.items()} == {
        "y": [0, 1],
        "again": [0, 1],
        "copy": [-1, 1],
        "weight": [1, 1],
    }


def test_shapes_that_are_static_are_constants_and_others_are_computed(g: Builder) -> None:
    fixed, open_ = g.input("fixed", FLOAT, (2, 3)), g.input("open", FLOAT, ("N", 3))
    assert g.shape(fixed).is_initializer()
    assert g.dim(open_, 1).is_initializer()
    assert g.size(open_, [1]).is_initializer()
    computed = {
        "shape": g.shape(open_),
        "first": g.dim(open_, 0),
        "first from the end": g.dim(open_, -2),
        "size": g.size(open_),
        "zeros": g.zeros_like(open_),
        "again": g.reshape_like(g.Flatten(open_, axis=0), open_),
    }
    for name, value in computed.items():
        g.output(value, name)
    for n in (4, 0):
        results = Interpreter(g.graph).run(
            {"fixed": np.ones((2, 3), np.float32), "open": np.ones((n, 3), np.float32)}
        )
        assert results["shape"].tolist() == [n, 3]
        assert results["first"].tolist() == results["first from the end"].tolist() == [n]
        assert (results["size"].item(), results["size"].dtype) == (3 * n, np.float32)
        assert results["zeros"].shape == results["again"].shape == (n, 3)


def test_writing_before_a_node(g: Builder) -> None:
    x = g.input("x", FLOAT, (2,))
    last = g.Relu(x).producer()
    g.at(last)
    g.Neg(x)
    g.at(None)
    g.Abs(x)
    assert [n.op_type for n in g.graph] == ["Neg", "Relu", "Abs"]


def test_errors_name_node_operands_and_opset(g: Builder) -> None:
    x = g.input("x", FLOAT, ("N", 3))
    with pytest.raises(
        ShapeError,
        match=r"node 'MatMul', operator MatMul, opset .*\(inputs: x: float\[N, 3\], const: float\[4, 2\]\)",
    ):
        g.MatMul(x, np.ones((4, 2), np.float32))
    with pytest.raises(UnsupportedError, match=r"node 'Foo', operator Foo, opset 21: .*no such operator"):
        g.Foo(x)
    with pytest.raises(AttributeError):
        _ = g.relu
