"""Gradient rules against central differences in float64, and against onnxruntime in float32."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import onnx
import pytest
from tests.ops.cases import CASES
from tests.ops.exclusions import GRADIENT_CASES, MOVED, NO_GRADIENT, ORT_GRADIENTS
from tests.ops.harness import (
    OPSET,
    Array,
    Case,
    assert_same,
    differentiable_inputs,
    feed,
    for_double,
    has_gradient,
    in_double,
    model_of,
    run,
    run_ort,
    slope,
    with_ort,
)
from tests.ops.onnx_cases import as_case, onnx_cases

from onward.engine.interpreter import Interpreter
from onward.graph import registered

_ELEMENTS = 40
"""Operands up to this size are checked element by element, larger ones along random directions."""

_DIRECTIONS = 5


def _moved(case: Case) -> Case:
    move, _ = MOVED.get(case.op_type, (None, ""))
    if move is None:
        return case
    wrt = case.differentiated()
    inputs = [move(x) if i in wrt else x for i, x in enumerate(case.inputs)]
    return dataclasses.replace(case, inputs=inputs)


@functools.cache
def _gradient_cases() -> tuple[Case, ...]:
    found = [case for c in onnx_cases() if c.name not in GRADIENT_CASES and (case := as_case(c)) is not None]
    ours = [case for case in CASES if has_gradient(case)]
    return tuple(case for case in [*map(_moved, found), *ours] if case.differentiated())


def _directions(x: Array) -> list[Array]:
    if x.size <= _ELEMENTS:
        return [unit.reshape(x.shape) for unit in np.eye(x.size)]
    rng = np.random.default_rng(x.size)
    return [rng.normal(size=x.shape) for _ in range(_DIRECTIONS)]


@pytest.mark.parametrize("case", _gradient_cases(), ids=lambda case: case.id)
def test_gradient(case: Case) -> None:
    model = model_of(case, gradient=True)
    narrow = feed(case, model)
    got = run(model, narrow)
    for i in case.differentiated():
        if f"dx{i}" in got:
            assert got[f"dx{i}"].shape == narrow[f"x{i}"].shape
            assert got[f"dx{i}"].dtype == narrow[f"x{i}"].dtype
    if with_ort(case) and case.id not in ORT_GRADIENTS:
        assert_same(got, run_ort(model, narrow), case.rtol, case.atol)

    case = for_double(case)
    wide, inputs = in_double(model_of(case, gradient=True), narrow)
    exact = run(wide, inputs)
    forward, _ = in_double(model_of(case), narrow)
    engine = Interpreter(forward.graph)
    fed = {v.name or "": inputs[v.name or ""] for v in forward.graph.inputs}
    seeds = {name.removeprefix("d"): dy for name, dy in inputs.items() if name.startswith("dy")}

    for i in case.differentiated():
        name = f"x{i}"

        def objective(x: Array, name: str = name) -> float:
            outputs = engine.run({**fed, name: x}, list(seeds))
            return sum(float(np.sum(outputs[y] * dy)) for y, dy in seeds.items())

        dx = exact.get(f"dx{i}", np.zeros_like(fed[name]))
        want = np.array([slope(objective, fed[name], v) for v in _directions(fed[name])])
        have = np.array([float(np.sum(dx * v)) for v in _directions(fed[name])])
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-8 * scale, err_msg=f"d/dx{i}")


@pytest.mark.parametrize("case", [c for c in _gradient_cases() if c.batch], ids=lambda case: case.id)
def test_gradient_of_an_empty_batch(case: Case) -> None:
    model = model_of(case, gradient=True)
    inputs = feed(case, model, empty_batch=True)
    got = run(model, inputs)
    for i in case.differentiated():
        dx = got[f"dx{i}"]
        assert dx.shape == inputs[f"x{i}"].shape
        np.testing.assert_array_equal(dx, np.zeros_like(dx))
    if with_ort(case) and case.id not in ORT_GRADIENTS:
        assert_same(got, run_ort(model, inputs), case.rtol, case.atol)


def _differentiable(op_type: str) -> bool:
    opset = max(*registered()["", op_type], OPSET)
    schema = onnx.defs.get_schema(op_type, opset)
    floats = any("tensor(float)" in c.allowed_type_strs for c in schema.type_constraints)
    return floats and bool(differentiable_inputs(op_type, opset, len(schema.inputs)))


_DIFFERENTIABLE = [op for domain, op in sorted(registered()) if not domain and _differentiable(op)]


@pytest.mark.parametrize("op_type", _DIFFERENTIABLE)
def test_differentiable_operator_has_a_rule_and_a_case(op_type: str) -> None:
    tested = any(case.op_type == op_type and not case.domain for case in _gradient_cases())
    assert tested != (op_type in NO_GRADIENT)


def test_exclusions_name_cases() -> None:
    names = {case.name for case in onnx_cases()}
    assert set(GRADIENT_CASES) <= names
    assert set(ORT_GRADIENTS) <= names
