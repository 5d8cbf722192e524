"""Values that their readers compute again, where that moves fewer bytes."""

from __future__ import annotations

import onnx_ir as ir
from tests.compile.units import TARGET, Build, floats, program_of

from onward.compile.grouping import grouped
from onward.compile.groups import Group
from onward.compile.recompute import recompute
from onward.graph import Builder


def _names(groups: list[Group]) -> list[list[str]]:
    return sorted(sorted(o.node.op_type for o in g.operations) for g in groups)


def _before_and_after(build: Build) -> tuple[list[list[str]], list[list[str]]]:
    program = program_of(build)
    return _names(grouped(program, TARGET)), _names(recompute(grouped(program, TARGET), program, TARGET))


def test_a_cheap_value_that_reductions_take_as_an_expression_is_not_kept() -> None:
    def build(g: Builder) -> list[ir.Value]:
        x, scale, mean = floats(g, "x", 4, 8, 6, 6), floats(g, "s", 8), floats(g, "m", 8)
        y = g.emit("BatchNormalization", x, scale, scale, mean, mean, outputs=3, training_mode=1)[0]
        dy = g.Mul(floats(g, "dy", 4, 8, 6, 6), 2.0)
        return [y, *g.emit("BatchNormalizationGrad", dy, x, scale, domain="ai.onward", outputs=3)]

    before, after = _before_and_after(build)
    assert ["BatchNormalizationGrad"] in before
    assert ["BatchNormalizationGrad", "Mul"] in after
    assert before != after


def test_a_value_that_costs_much_is_kept() -> None:
    def build(g: Builder) -> list[ir.Value]:
        x = floats(g, "x", 64, 64)
        y = g.Tanh(g.Exp(g.Tanh(x)))
        return [g.MatMul(y, y), g.Mul(g.Transpose(y), 2.0)]

    before, after = _before_and_after(build)
    assert before == after


def test_a_program_without_element_wise_operations_stays_as_it_is() -> None:
    before, after = _before_and_after(lambda g: g.MatMul(floats(g, "x", 4, 4), floats(g, "w", 4, 4)))
    assert before == after == [["MatMul"]]
