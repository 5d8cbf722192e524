"""Plans against the interpreter: every case of the operator suites, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import planned
from tests.ops.cases import CASES
from tests.ops.exclusions import NODE_CASES
from tests.ops.harness import Case, assert_same, feed, has_gradient, model_of, run
from tests.ops.onnx_cases import array_of, has_tensors_only, onnx_cases
from tests.ops.test_special_values import _CASES as SPECIAL
from tests.ops.test_special_values import _OTHER, EXCLUDED

from onward.compile.program import NotStaticError
from onward.graph import Array

RTOL, ATOL = 3e-5, 3e-6
"""Between two float32 computations of the same formula in another order."""


def _check(model: ir.Model, inputs: Mapping[str, Array], rtol: float = RTOL, atol: float = ATOL) -> None:
    try:
        plan = planned(model, inputs)
    except NotStaticError:
        pytest.skip("the shapes depend on data: no plan")
    want = run(model, inputs)
    for _ in range(2):
        assert_same(plan.run(inputs), want, rtol, atol)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_forward(case: Case) -> None:
    model = model_of(case)
    for empty in (False, True)[: 2 if case.batch else 1]:
        _check(model, feed(case, model, empty_batch=empty))


_DIFFERENTIABLE = [case for case in CASES if has_gradient(case) and case.differentiated()]


@pytest.mark.parametrize("case", _DIFFERENTIABLE, ids=lambda case: case.id)
def test_backward(case: Case) -> None:
    model = model_of(case, gradient=True)
    _check(model, feed(case, model))


def _numeric(case: Any) -> bool:
    """Whether a case of the ONNX project has arrays of numbers only."""
    data = [array_of(x) for inputs, outputs in case.data_sets for x in (*inputs, *outputs)]
    return all(isinstance(x, np.ndarray) and x.dtype.kind in "fiub" for x in data)


_NODES = [
    case for case in onnx_cases() if case.name not in NODE_CASES and has_tensors_only(case) and _numeric(case)
]


@pytest.mark.parametrize("case", _NODES, ids=lambda case: case.name)
def test_node_case(case: Any) -> None:
    model = ir.from_proto(case.model)
    names = [v.name or "" for v in model.graph.inputs]
    for data, _ in case.data_sets:
        _check(model, dict(zip(names, map(array_of, data), strict=True)))


WRONG_SHAPE = {"PRelu": "its slope has to broadcast to X, and onnx infers X's shape"}


@pytest.mark.parametrize("case", SPECIAL, ids=lambda case: case.op_type)
def test_special_values(case: Case) -> None:
    """NaN, infinities, denormals and the largest numbers travel as in the interpreter."""
    if EXCLUDED.get(case.op_type) == _OTHER or case.op_type in WRONG_SHAPE:
        pytest.skip(WRONG_SHAPE.get(case.op_type, _OTHER))
    model = model_of(case)
    inputs = {f"x{i}": x for i, x in enumerate(case.operands()) if x is not None}
    try:
        got, want = planned(model, inputs).run(inputs), run(model, inputs)
    except NotStaticError:
        pytest.skip("the shapes depend on data: no plan")
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        if array.dtype.kind == "f":
            np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(got[name], array, err_msg=name)
