"""Groups of element-wise operations: complete, in order, without cycles, truth values computed where used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compile.units import TARGET

from onward.compile.grouping import grouped, is_element
from onward.compile.groups import Group, ordered
from onward.compile.program import Program, specialize
from onward.compile.recompute import recompute
from onward.graph import Builder


def _program(
    build: Callable[[Builder, ir.Value], list[ir.Value]], shape: tuple[int, ...] = (4, 4)
) -> Program:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="fused")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, shape)
    for i, y in enumerate(build(g, x)):
        g.output(y, f"y{i}")
    return specialize(ir.Model(graph, ir_version=10), {"x": shape})


def _kinds(groups: list[Group]) -> list[list[str]]:
    return [[o.node.op_type for o in group.operations] for group in groups]


def _check(program: Program) -> list[Group]:
    """Every group follows what it reads; every operation is there, once if it is not element-wise."""
    groups = ordered(recompute(grouped(program, TARGET), program, TARGET))
    made = {*program.inputs.values(), *program.state.values(), *program.weights.values(), *program.constants}
    for group in groups:
        assert all(v in made for v in group.inputs)
        inside = {*group.inputs}
        for operation in group.operations:
            assert all(v is None or v in inside for v in operation.inputs), operation.label
            inside.update(operation.outputs)
        kept = {v for o in group.operations for v in o.outputs} - group.again
        assert not any(v in made for v in kept if program.dtypes[v] != np.bool_)
        made |= kept
    assert set(program.outputs.values()) <= made
    placed = [o for group in groups for o in group.operations]
    assert set(placed) == set(program.operations)
    for operation in program.operations:
        assert placed.count(operation) == 1 or is_element(operation, program)
    return groups


def test_a_chain_is_one_group() -> None:
    groups = _check(_program(lambda g, x: [g.Mul(g.Tanh(g.Add(x, 1.0)), 2.0)]))
    assert _kinds(groups) == [["Add", "Tanh", "Mul"]]


def test_a_value_that_is_used_twice_is_computed_once() -> None:
    def build(g: Builder, x: ir.Value) -> list[ir.Value]:
        y = g.Exp(x)
        return [g.Add(y, 1.0), g.Mul(y, 2.0), g.MatMul(y, y)]

    groups = _check(_program(build))
    assert sorted(map(sorted, _kinds(groups))) == [["Add", "Exp", "Mul"], ["MatMul"]]


def test_no_group_depends_on_itself_through_another() -> None:
    def build(g: Builder, x: ir.Value) -> list[ir.Value]:
        y = g.Tanh(x)
        return [g.Add(y, g.MatMul(y, y))]

    assert _kinds(_check(_program(build))) == [["Tanh"], ["MatMul"], ["Add"]]


def test_other_shapes_are_other_groups() -> None:
    def build(g: Builder, x: ir.Value) -> list[ir.Value]:
        row = g.Tanh(g.ReduceSum(x, [0], keepdims=1))
        return [g.Add(g.Exp(x), row)]

    shapes = [g.shape for g in _check(_program(build)) if g.shape is not None]
    assert sorted(shapes) == [(1, 4), (4, 4)]


def test_truth_values_are_computed_in_every_group_that_uses_them() -> None:
    def build(g: Builder, x: ir.Value) -> list[ir.Value]:
        positive = g.Greater(x, 0.0)
        first = g.Where(positive, x, 0.0)
        return [g.Where(positive, g.MatMul(first, first), 1.0)]

    groups = _check(_program(build))
    assert _kinds(groups) == [["Greater", "Where"], ["MatMul"], ["Greater", "Where"]]


def test_truth_values_that_are_results_are_kept() -> None:
    def build(g: Builder, x: ir.Value) -> list[ir.Value]:
        return [g.And(g.Greater(x, 0.0), g.Less(x, 1.0))]

    assert sorted(_kinds(_check(_program(build)))[-1]) == ["And", "Greater", "Less"]


def test_a_cheap_value_is_computed_where_its_source_is_read_anyway() -> None:
    def build(g: Builder, x: ir.Value) -> list[ir.Value]:
        twice = g.Mul(x, 2.0)
        positive = g.Relu(twice)
        return [g.Add(g.Mul(g.MatMul(positive, positive), twice), x)]

    groups = _check(_program(build))
    assert _kinds(groups) == [["Mul", "Relu"], ["MatMul"], ["Mul", "Mul", "Add"]]
    assert len(groups[2].inputs) == 3  # the product, 2 and x


def test_a_value_whose_source_nobody_else_reads_is_kept() -> None:
    def build(g: Builder, x: ir.Value) -> list[ir.Value]:
        sum_ = g.Add(x, g.MatMul(x, x))
        return [g.Mul(g.MatMul(sum_, sum_), g.Relu(sum_))]

    assert _kinds(_check(_program(build)))[-1] == ["Relu", "Mul"]


def test_an_expensive_value_is_kept() -> None:
    def build(g: Builder, x: ir.Value) -> list[ir.Value]:
        power = g.Exp(x)
        return [g.Add(g.Mul(g.MatMul(g.Relu(power), x), power), x)]

    assert _kinds(_check(_program(build)))[-1] == ["Mul", "Add"]


def test_groups_are_bounded() -> None:
    def build(g: Builder, x: ir.Value) -> list[ir.Value]:
        for _ in range(60):
            x = g.Tanh(x)
        return [x]

    sizes = [len(group.operations) for group in _check(_program(build))]
    assert sum(sizes) == 60
    assert max(sizes) <= 24


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_random_graphs(data: st.DataObject) -> None:
    def build(g: Builder, x: ir.Value) -> list[ir.Value]:
        numbers, truths = [x], [g.Greater(x, 0.0)]

        def pick(values: list[ir.Value]) -> ir.Value:
            return data.draw(st.sampled_from(values))

        kinds: dict[str, Callable[[], Any]] = {
            "add": lambda: numbers.append(g.Add(pick(numbers), pick(numbers))),
            "tanh": lambda: numbers.append(g.Tanh(pick(numbers))),
            "where": lambda: numbers.append(g.Where(pick(truths), pick(numbers), pick(numbers))),
            "product": lambda: numbers.append(g.MatMul(pick(numbers), pick(numbers))),
            "less": lambda: truths.append(g.Less(pick(numbers), pick(numbers))),
            "and": lambda: truths.append(g.And(pick(truths), pick(truths))),
            "mean": lambda: numbers.append(g.Add(g.ReduceMean(pick(numbers), [1], keepdims=1), x)),
        }
        for _ in range(data.draw(st.integers(1, 25))):
            kinds[data.draw(st.sampled_from(sorted(kinds)))]()
        return list(dict.fromkeys([numbers[-1], pick(numbers), truths[-1]]))

    _check(_program(build))
