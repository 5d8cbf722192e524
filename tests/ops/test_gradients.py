"""Gradient rules against central differences in float64, and against onnxruntime in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from tests.ops.exclusions import (
    GRADIENT_CASES,
    NO_GRADIENT,
    NO_TORCH,
    ORT_GRADIENTS,
    SECOND_ORDER,
    TORCH_GRADIENTS,
)
from tests.ops.gradient_checks import (
    CONSTANT_GRADIENTS,
    check_differences,
    check_emitted,
    check_second,
    gradient_cases,
    without_ort,
)
from tests.ops.harness import (
    OPSET,
    Case,
    assert_same,
    differentiable_inputs,
    feed,
    model_of,
    run,
    run_ort,
)
from tests.ops.onnx_cases import onnx_cases
from tests.ops.torch_checks import ask_torch, check_torch, interpreter

from onward.graph import registered


@pytest.mark.parametrize("case", gradient_cases(), ids=lambda case: case.id)
def test_gradient(case: Case) -> None:
    check_emitted(case)
    check_differences(case)


def _second_order() -> list[Any]:
    """Cases to differentiate twice; bodies of recurrent operators take seconds each."""
    cases = [c for c in gradient_cases() if c.op_type not in CONSTANT_GRADIENTS]
    slow = ("GRU", "LSTM", "RNN")
    return [pytest.param(c, marks=pytest.mark.slow) if c.op_type in slow else c for c in cases]


@pytest.mark.parametrize("case", _second_order(), ids=lambda case: case.id)
def test_second_order(case: Case) -> None:
    check_second(case)


@pytest.mark.parametrize("case", [c for c in gradient_cases() if c.batch], ids=lambda case: case.id)
def test_gradient_of_an_empty_batch(case: Case) -> None:
    model = model_of(case, gradient=True)
    inputs = feed(case, model, empty_batch=True)
    got = run(model, inputs)
    for i in case.differentiated():
        dx = got[f"dx{i}"]
        assert dx.shape == inputs[f"x{i}"].shape
        np.testing.assert_array_equal(dx, np.zeros_like(dx))
    if not without_ort(case):
        assert_same(got, run_ort(model, inputs), case.rtol, case.atol)


def _differentiable(op_type: str) -> bool:
    opset = max(*registered()["", op_type], OPSET)
    schema = onnx.defs.get_schema(op_type, opset)
    floats = any("tensor(float)" in c.allowed_type_strs for c in schema.type_constraints)
    return floats and bool(differentiable_inputs(op_type, opset, len(schema.inputs)))


_DIFFERENTIABLE = [op for domain, op in sorted(registered()) if not domain and _differentiable(op)]


@pytest.mark.parametrize("op_type", _DIFFERENTIABLE)
def test_differentiable_operator_has_a_rule_and_a_case(op_type: str) -> None:
    tested = any(case.op_type == op_type and not case.domain for case in gradient_cases())
    assert tested != (op_type in NO_GRADIENT)


@pytest.mark.slow
@pytest.mark.skipif(not interpreter(), reason="ONWARD_TORCH_PYTHON does not name an interpreter with torch")
def test_gradients_beside_torch() -> None:
    """Each operator in one form at least, those aside that are said to be without torch."""
    cases = [case for case in gradient_cases() if not case.domain]
    compared = set()
    for case, answer in zip(cases, ask_torch(cases), strict=True):
        if answer.gradients and case.id in TORCH_GRADIENTS:
            with pytest.raises(AssertionError):
                check_torch(case, answer)
        elif check_torch(case, answer):
            compared.add(case.op_type)
    assert compared == {case.op_type for case in cases} - set(NO_TORCH)


def test_exclusions_name_cases() -> None:
    names = {case.name for case in onnx_cases()}
    assert set(GRADIENT_CASES) <= names
    assert set(ORT_GRADIENTS) <= names
    assert set(SECOND_ORDER) | set(TORCH_GRADIENTS) <= {case.id for case in gradient_cases()}
