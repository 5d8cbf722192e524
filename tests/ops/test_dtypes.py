"""Kernels keep the element type of their operands: no silent float64 or float32 results."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir
import pytest
from tests.ops.cases import CASES
from tests.ops.exclusions import NODE_CASES
from tests.ops.harness import Case, feed, model_of, run
from tests.ops.onnx_cases import onnx_cases, single_node

from onward.errors import ShapeError
from onward.graph import numpy_dtype
from onward.passes import cast_floats

_PER_OPERATOR = 4
"""How many cases an operator contributes: a few suffice, for a type does not depend on a shape."""


def _cases() -> list[Case]:
    by_operator: defaultdict[tuple[str, str], list[Case]] = defaultdict(list)
    found = [case for c in onnx_cases() if c.name not in NODE_CASES and (case := single_node(c)) is not None]
    for case in [*CASES, *found]:
        by_operator[case.domain, case.op_type].append(case)
    return [case for cases in by_operator.values() for case in cases[:_PER_OPERATOR]]


@pytest.mark.parametrize("dtype", [ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16], ids=str)
@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.id)
def test_element_types(case: Case, dtype: ir.DataType) -> None:
    model = model_of(case)
    try:
        model = cast_floats(model, dtype)
    except ShapeError as error:
        if "type" not in str(error):
            raise
        pytest.skip("the schema does not allow the type")
    kinds = {v.name or "": numpy_dtype(v.dtype or ir.DataType.FLOAT) for v in model.graph.inputs}
    with np.errstate(over="ignore"):
        fed = {name: x.astype(kinds[name]) for name, x in feed(case, model).items()}
    got = run(model, fed)
    for value in model.graph.outputs:
        assert got[value.name or ""].dtype == numpy_dtype(value.dtype or ir.DataType.UNDEFINED), value.name
