from __future__ import annotations

import gc
import weakref

import numpy as np
import onnx_ir as ir
import pytest

from onward.engine import Interpreter
from onward.errors import ShapeError, UnsupportedError
from onward.graph import Builder, find

FLOAT = ir.DataType.FLOAT


def builder() -> Builder:
    return Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="test"))


def test_outputs_may_be_inputs_initializers_or_chosen() -> None:
    g = builder()
    x, w = g.input("x", FLOAT, ("N",)), g.initializer("w", np.array([2.0], np.float32))
    y = g.Mul(x, w)
    y.name = "y"
    g.graph.outputs.extend([x, w, y])
    run = Interpreter(g.graph)
    feeds = {"x": np.array([1, 3], np.float32)}
    assert {k: v.tolist() for k, v in run.run(feeds).items()} == {"x": [1, 3], "w": [2], "y": [2, 6]}
    assert list(run.run(feeds, ["y"])) == ["y"]


def test_inputs_that_are_not_used() -> None:
    g = builder()
    g.input("unused", FLOAT, ("N",))
    g.output(g.Neg(g.input("x", FLOAT, ("N",))), "y")
    x = np.ones(2, np.float32)
    assert Interpreter(g.graph).run({"unused": x, "x": x})["y"].tolist() == [-1, -1]


def test_initializers_are_defaults_of_inputs_and_can_be_replaced() -> None:
    g = builder()
    x, w = g.input("x", FLOAT, ("N",)), g.initializer("w", np.array([2.0], np.float32))
    g.graph.inputs.append(w)
    g.output(g.Mul(x, w), "y")
    run, x_ = Interpreter(g.graph), np.ones(1, np.float32)
    assert run.run({"x": x_})["y"].item() == 2
    assert run.run({"x": x_, "w": np.array([5.0], np.float32)})["y"].item() == 5
    assert run.run({"x": x_})["y"].item() == 2
    run.load({"w": np.array([7.0], np.float32)})
    assert run.run({"x": x_})["y"].item() == 7


def test_results_are_freed_after_their_last_use() -> None:
    """Whatever the length of the chain, only the operand and the result of the node at work are alive."""
    g = builder()
    y = g.input("x", FLOAT, (1000,))
    for _ in range(6):
        y = g.Neg(y)
    g.output(y, "y")
    refs: list[weakref.ref] = []
    most = 0

    def observe(node: ir.Node, outputs: tuple[np.ndarray, ...]) -> None:
        nonlocal most
        refs.append(weakref.ref(outputs[0]))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in refs))

    Interpreter(g.graph).run({"x": np.ones(1000, np.float32)}, observer=observe)
    assert len(refs) == 6
    assert most == 2


def test_the_observer_sees_every_node_with_its_outputs() -> None:
    g = builder()
    values, indices = g.emit("TopK", g.input("x", FLOAT, (3,)), [2], outputs=2)
    g.output(g.Neg(values), "y")
    g.output(indices, "i")
    seen = []
    Interpreter(g.graph).run(
        {"x": np.array([1, 3, 2], np.float32)},
        observer=lambda node, outputs: seen.append((node.op_type, [o.tolist() for o in outputs])),
    )
    assert seen == [("TopK", [[3, 2], [1, 2]]), ("Neg", [[-3, -2]])]


def test_every_unknown_operator_is_named_before_anything_runs() -> None:
    nodes = [ir.node("Strange", [], domain="com.example", name=name) for name in ("first", "second")]
    graph = ir.Graph([], [], nodes=nodes, opset_imports={"": 21, "com.example": 3}, name="test")
    with pytest.raises(UnsupportedError) as caught:
        Interpreter(graph)
    lines = str(caught.value).splitlines()
    assert lines[0] == "this graph cannot run:"
    assert [line.split(":")[0] for line in lines[1:]] == ["  node 'first'", "  node 'second'"]
    assert all("operator Strange" in line and "opset 3" in line for line in lines[1:])


def test_errors_name_node_operator_and_opset() -> None:
    g = builder()
    a, b = (g.input(n, FLOAT, (n,)) for n in "ab")
    g.output(g.Add(a, b), "y")
    with pytest.raises(ShapeError, match=r"^node 'Add', operator Add, opset 21: operands could not be"):
        Interpreter(g.graph).run({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})


def test_an_onward_error_of_a_kernel_keeps_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self, x):
        raise UnsupportedError("not like this")

    monkeypatch.setattr(find("", "Neg", 21), "kernel", refuse)
    g = builder()
    g.output(g.Neg(g.input("x", FLOAT, (1,))), "y")
    with pytest.raises(UnsupportedError, match=r"^node 'Neg', operator Neg, opset 21: not like this$"):
        Interpreter(g.graph).run({"x": np.ones(1, np.float32)})


def test_nan_and_infinity_travel_without_warnings() -> None:
    g = builder()
    g.output(g.Div(g.input("x", FLOAT, ("N",)), 0.0), "y")
    y = Interpreter(g.graph).run({"x": np.array([1, -1, 0], np.float32)})["y"]
    np.testing.assert_array_equal(y, [np.inf, -np.inf, np.nan])
