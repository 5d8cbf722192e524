"""The compiled engine's own: which weights can be swapped, and state that trades places."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onward.engine import Session, StepSession
from onward.errors import ConfigError, InputError, ShapeError
from onward.graph import Builder


def test_weights_can_be_swapped_whatever_their_name_and_size() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="named")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 3))
    slope = g.initializer("const_fold_opt__7", np.array([0.5], np.float32))
    w = g.initializer("const_w", np.ones((3, 8), np.float32))
    g.output(g.PRelu(g.MatMul(x, w), slope), "y")
    session = Session(ir.Model(graph, ir_version=10), engine="compiled")
    feed = {"x": -np.ones((2, 3), np.float32)}
    np.testing.assert_array_equal(session.run(feed)["y"], np.full((2, 8), -1.5))
    session.load_weights({"const_fold_opt__7": np.array([2.0], np.float32)})
    np.testing.assert_array_equal(session.run(feed)["y"], np.full((2, 8), -6.0))
    session.load_weights({"const_w": np.full((3, 8), 2.0, np.float32)})
    np.testing.assert_array_equal(session.run(feed)["y"], np.full((2, 8), -12.0))


def test_integer_initializers_are_part_of_the_program() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="shaped")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    shape = g.initializer("shape", np.array([-1, 2]))
    g.output(g.Reshape(x, shape), "y")
    session = Session(ir.Model(graph, ir_version=10), engine="compiled")
    with pytest.raises(InputError, match="'shape' is not of a floating-point type"):
        session.load_weights({"shape": np.array([-1, 4])})


def test_state_that_trades_places() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="swap")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ())
    a = g.initializer("a", np.arange(3, dtype=np.float32))
    b = g.initializer("b", np.arange(3, 6, dtype=np.float32))
    g.output(g.Add(g.ReduceSum(a, keepdims=0), x), "y")
    g.output(b, "a.next")
    g.output(a, "b.next")
    graph.inputs.extend([a, b])
    session = StepSession(ir.Model(graph, ir_version=10), {"a": "a.next", "b": "b.next"}, engine="compiled")
    for step, total in enumerate((3, 12, 3)):
        assert float(session.run({"x": np.array(0, np.float32)})["y"]) == total, step


@pytest.mark.parametrize("rows", [3, 3000])
def test_inputs_of_every_run_are_the_callers(rows: int) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="given")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    index = g.input("index", ir.DataType.INT64, ("K",))
    g.output(g.Add(x, 1.0), "y")
    g.output(g.Gather(x, index, axis=0), "picked")
    g.output(g.Identity(x), "same")
    g.output(g.Mod(index, np.array(2)), "odd")
    session = Session(ir.Model(graph, ir_version=10), engine="compiled")
    wide = np.arange(8 * rows, dtype=np.float32).reshape(rows, 8)
    for x_array in (wide[:, :4].copy(), wide[:, ::2], wide[::-1, 1:5]):
        for shift in (0.0, 5.0):
            x_array += np.float32(shift)
            picked = np.array([rows - 1, 0, 1])
            found = session.run({"x": x_array, "index": picked})
            np.testing.assert_array_equal(found["y"], x_array + 1)
            np.testing.assert_array_equal(found["picked"], x_array[picked])
            np.testing.assert_array_equal(found["same"], x_array)
            np.testing.assert_array_equal(found["odd"], picked % 2)
    for wrong in (rows, -rows - 1, 2**62, -(2**63)):
        with pytest.raises(ShapeError, match=f"index {wrong} at position"):
            session.run({"x": wide[:, :4], "index": np.array([0, wrong, 1])})


def test_inputs_that_are_sequences_are_the_interpreters() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="rows")
    g = Builder(graph)
    rows = ir.Value(
        name="rows", type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)), shape=ir.Shape([None, 2])
    )
    graph.inputs.append(rows)
    g.output(g.ConcatFromSequence(rows, axis=0), "y")
    with Session(ir.Model(graph, ir_version=10), engine="compiled") as session:
        session.prepare({})
        assert session.run({"rows": [np.ones((1, 2), np.float32)] * 3})["y"].shape == (3, 2)
    with pytest.raises(ConfigError, match="closed"):
        session.run({"rows": []})
