"""float64 by the same rules and generators as float32, against the interpreter."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import interpreted, planned, wide
from tests.compile.test_plans_zoo import make
from tests.ops.cases import CASES
from tests.ops.harness import Case, feed, has_gradient, model_of, run

from onward.compile.program import NotStaticError
from onward.graph import Array
from onward.passes import cast_floats

ROUNDING = 1e-12
"""Of the largest finite element, or absolute below 1."""


def _assert_near(got: Array, exact: Array, rounding: float = ROUNDING) -> None:
    scale = max(1.0, float(np.abs(exact[np.isfinite(exact)]).max(initial=0)))
    np.testing.assert_allclose(got, exact, rtol=0, atol=rounding * scale)


_ONE_EACH = list({(case.op_type, case.domain): case for case in CASES}.values())

_LESS_EXACT = {"BatchNormalization": 1e-11}
"""Sums of differences of nearly equal numbers."""


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("case", _ONE_EACH, ids=lambda case: case.id)
def test_operators_agree(case: Case, gradient: bool) -> None:
    if gradient and not (has_gradient(case) and case.differentiated()):
        pytest.skip("no gradient")
    narrow = model_of(case, gradient=gradient)
    model, inputs = cast_floats(narrow, ir.DataType.DOUBLE), wide(feed(case, narrow))
    try:
        plan = planned(model, inputs)
    except NotStaticError:
        pytest.skip("the shapes depend on data: no plan")
    got, want = plan.run(inputs), run(model, inputs)
    rounding = _LESS_EXACT.get(case.op_type, ROUNDING)
    for name, exact in want.items():
        assert got[name].dtype == exact.dtype
        if exact.dtype != np.float64:
            np.testing.assert_array_equal(got[name], exact)
            continue
        _assert_near(got[name], exact, rounding)


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mlp"])
def test_training_agrees_step_by_step(name: str) -> None:
    made = make(name, 4, steps=4)
    model = cast_floats(made.step.model, ir.DataType.DOUBLE)
    feeds = [wide(feed) for feed in made.feeds]
    plan = planned(model, feeds[0], made.step.bindings)
    assert plan.fallbacks == {}
    want, state = interpreted(model, made.step.bindings, feeds)
    for feed_, exact in zip(feeds, want, strict=True):
        got = plan.run(feed_)
        for key, expected in exact.items():
            _assert_near(got[key], expected)
    for key, expected in state.items():
        _assert_near(plan.fixed[key], expected)
