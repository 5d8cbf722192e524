"""Specialisation: shapes fixed, what follows from constants computed, what nobody reads left out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onward.compile.program import NotStaticError, Program, specialize
from onward.errors import ShapeError
from onward.graph import Builder


def _builder() -> tuple[Builder, ir.Value]:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="program")
    g = Builder(graph)
    return g, g.input("x", ir.DataType.FLOAT, ["N", "C", 6])


def _specialize(g: Builder, *outputs: ir.Value, shape: tuple[int, ...] = (2, 4, 6)) -> Program:
    for i, y in enumerate(outputs):
        g.output(y, f"y{i}")
    return specialize(ir.Model(g.graph, ir_version=10), {"x": shape})


def _kinds(program: Program) -> list[str]:
    return [o.node.op_type for o in program.operations]


def test_shapes_are_known_everywhere() -> None:
    g, x = _builder()
    program = _specialize(g, g.Transpose(g.Relu(x), perm=[2, 1, 0]))
    assert program.shapes[program.outputs["y0"]] == (6, 4, 2)
    assert program.dtypes[program.outputs["y0"]] == np.float32


def test_what_follows_from_shapes_is_computed() -> None:
    g, x = _builder()
    size = g.Mul(g.Gather(g.Shape(x), [1]), g.const([3]))
    program = _specialize(g, g.Reshape(g.Relu(x), g.Concat(g.const([-1]), size, axis=0)))
    assert _kinds(program) == ["Relu", "Reshape"]
    assert program.shapes[program.outputs["y0"]] == (4, 12)


def test_large_constants_are_not_computed_ahead() -> None:
    g, x = _builder()
    large = g.ConstantOfShape(g.const([1 << 20]))
    program = _specialize(g, g.ReduceSum(large, [0]), g.Relu(x))
    assert "ConstantOfShape" in _kinds(program)


def test_weights_are_read_at_run_time() -> None:
    """Their contents may be replaced: nothing may be computed from them ahead."""
    g, x = _builder()
    w = g.initializer("w", np.ones((4, 6), np.float32))
    program = _specialize(g, g.Add(x, g.Neg(w)))
    assert _kinds(program) == ["Neg", "Add"]
    assert list(program.weights) == ["w"]


def test_state_is_no_constant() -> None:
    g, x = _builder()
    s = g.initializer("s", np.ones((4, 6), np.float32))
    g.graph.inputs.append(s)
    program = _specialize(g, g.Add(x, s), g.Mul(s, 2.0))
    assert list(program.state) == ["s"]
    assert sorted(_kinds(program)) == ["Add", "Mul"]


def test_what_nobody_reads_is_left_out() -> None:
    g, x = _builder()
    g.Exp(x)
    program = _specialize(g, g.Relu(x))
    assert _kinds(program) == ["Relu"]


def test_shapes_that_depend_on_data_are_refused() -> None:
    g, x = _builder()
    with pytest.raises(NotStaticError, match="depends on data"):
        _specialize(g, g.NonZero(x))


def test_contradictions_name_the_node() -> None:
    g, x = _builder()
    y = g.Add(x, g.initializer("w", np.ones((5, 6), np.float32)))
    with pytest.raises(ShapeError, match="operator Add"):
        _specialize(g, y)


def test_the_model_is_left_as_it_was() -> None:
    g, x = _builder()
    g.output(g.Relu(x), "y")
    model = ir.Model(g.graph, ir_version=10)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    specialize(model, {"x": (2, 4, 6)})
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
