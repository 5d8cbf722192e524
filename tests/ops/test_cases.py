"""Our own cases: the interpreter against onnxruntime, kernels against bodies, inference against arrays."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.ops.cases import CASES
from tests.ops.harness import Case, assert_same, feed, in_double, model_of, run, run_ort, with_ort

from onward.graph import ONWARD_DOMAIN, dims_of, numpy_dtype
from onward.passes import expand_onward


def _check_types(model: ir.Model, outputs: dict[str, object]) -> None:
    for value in model.graph.outputs:
        array = outputs[value.name or ""]
        assert value.dtype is not None
        assert numpy_dtype(value.dtype) == array.dtype  # type: ignore[attr-defined]
        dims = dims_of(value)
        if dims is not None:
            shape = array.shape  # type: ignore[attr-defined]
            assert len(dims) == len(shape)
            assert all(not isinstance(d, int) or d == n for d, n in zip(dims, shape, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_forward(case: Case) -> None:
    model = model_of(case)
    for empty in (False, True)[: 2 if case.batch else 1]:
        inputs = feed(case, model, empty_batch=empty)
        got = run(model, inputs)
        _check_types(model, got)
        if with_ort(case):
            assert_same(got, run_ort(model, inputs), case.rtol, case.atol)


@pytest.mark.parametrize("case", [c for c in CASES if c.domain == ONWARD_DOMAIN], ids=lambda case: case.id)
def test_kernel_equals_body(case: Case) -> None:
    model = model_of(case)
    wide, inputs = in_double(model, feed(case, model))
    assert_same(run(wide, inputs), run(expand_onward(wide), inputs), rtol=1e-11, atol=1e-12)
