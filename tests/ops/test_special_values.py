"""NaN, infinities, zeros, subnormal and huge numbers travel as in onnxruntime, element by element."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.ops.harness import OPSET, Case, model_of, run, run_ort

from onward.errors import ShapeError
from onward.graph import Array, registered

_VALUES = [np.nan, np.inf, -np.inf, 0.0, 1.0, -1.0, 0.5, -0.5, 2.5, -2.5, 1.5]
_LARGE = [88.0, -88.0, 100.0, -100.0, 200.0, -200.0, 1e20, -1e20, 3e38, -3e38]
_SMALL = [1e-8, -1e-8, 1e-40, -1e-40]
_X = np.array([*_VALUES, *_LARGE, *_SMALL], np.float32)

_OTHER = "not element by element"

EXCLUDED = {
    "GlobalAveragePool": _OTHER,
    "GlobalLpPool": _OTHER,
    "GlobalMaxPool": _OTHER,
    "LayerNormalization": _OTHER,
    "MeanVarianceNormalization": _OTHER,
    "NonMaxSuppression": _OTHER,
    "QuantizeLinear": _OTHER,
    "RMSNormalization": _OTHER,
    **dict.fromkeys(("Bernoulli", "RandomNormalLike", "RandomUniformLike"), "random numbers"),
    "Unique": "onnxruntime leaves out what stands beside NaN",
    "Hardmax": "onnxruntime marks no element where all are NaN",
    "Mod": "onnxruntime takes floats with fmod only",
}


def _case(op_type: str) -> Case | None:
    """A case where it takes one or two float operands and nothing else that must be given."""
    opset = max(OPSET, min(registered()["", op_type]))
    schema = onnx.defs.get_schema(op_type, opset)
    variadic = any(x.option == onnx.defs.OpSchema.FormalParameterOption.Variadic for x in schema.inputs)
    count = 2 if variadic else schema.min_input
    if count not in (1, 2) or any(a.required for a in schema.attributes.values()):
        return None
    operands: list[Array] = [_X] if count == 1 else [_X[:, None], _X[None, :]]
    case = Case(op_type, operands, opset=opset, wrt=())
    try:
        model_of(case)
    except ShapeError:
        return None
    return case


_CASES = [case for domain, op in sorted(registered()) if not domain and (case := _case(op)) is not None]


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.op_type)
def test_special_values(case: Case) -> None:
    if case.op_type in EXCLUDED:
        pytest.skip(EXCLUDED[case.op_type])
    model = model_of(case)
    inputs = {f"x{i}": x for i, x in enumerate(case.operands()) if x is not None}
    got, want = run(model, inputs), run_ort(model, inputs)
    for name, wanted in want.items():
        ours, theirs = (v if isinstance(v, list) else [v] for v in (got[name], wanted))  # sequences are lists
        for found, array in zip(ours, theirs, strict=True):
            assert found.dtype == array.dtype
            if array.dtype.kind == "f":
                np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-7)
            else:
                np.testing.assert_array_equal(found, array)


def test_the_usual_operators_are_among_them() -> None:
    assert {"Add", "Div", "Pow", "Exp", "Relu", "Sigmoid", "Softplus", "Gelu", "Clip", "Max", "Less"} <= {
        case.op_type for case in _CASES
    }
