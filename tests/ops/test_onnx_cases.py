"""The interpreter against the ONNX project's own expected values, for every operator that is registered."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.ops.cases import CASES
from tests.ops.exclusions import NO_NODE_CASE, NODE_CASES
from tests.ops.onnx_cases import array_of, onnx_cases
from tests.ops.test_old_versions import CASES as OLD

from onward.engine.interpreter import Interpreter
from onward.graph import Op, find, registered
from onward.model.structure import all_nodes


def _check(case: Any) -> None:
    proto = case.model
    interpreter = Interpreter(ir.from_proto(proto).graph)
    for inputs, outputs in case.data_sets:
        names = [v.name for v in proto.graph.input]
        got = interpreter.run(dict(zip(names, map(array_of, inputs), strict=True)))
        for value, expected in zip(proto.graph.output, map(array_of, outputs), strict=True):
            _compare(got[value.name], expected, case.rtol, case.atol)


def _compare(got: Any, want: Any, rtol: float, atol: float) -> None:
    if isinstance(want, list):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            _compare(g, w, rtol, atol)
        return
    text = want.dtype.kind in "OUST"
    assert text == (got.dtype.kind in "OUST")
    assert text or got.dtype == want.dtype
    assert got.shape == want.shape
    if text or want.dtype.kind in "biu":
        np.testing.assert_array_equal(got.astype(want.dtype), want)
    else:
        exact = np.complex128 if want.dtype.kind == "c" else np.float64
        np.testing.assert_allclose(got.astype(exact), want.astype(exact), rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", onnx_cases(), ids=lambda case: case.name)
def test_node_case(case: Any) -> None:
    if case.name in NODE_CASES:
        with pytest.raises(Exception):  # noqa: B017, PT011 whatever goes wrong there, it must still go wrong
            _check(case)
        pytest.skip(NODE_CASES[case.name])
    _check(case)


def test_exclusions_name_cases() -> None:
    assert set(NODE_CASES) <= {case.name for case in onnx_cases()}


@functools.cache
def _tested() -> frozenset[type[Op]]:
    tested = {find(case.domain, case.op_type, 1 if case.domain else case.opset) for case in CASES}
    tested |= {find("", case.op_type, case.opset) for case in OLD}
    for case in onnx_cases():
        opsets = {i.domain: i.version for i in case.model.opset_import}
        nodes = list(all_nodes(case.model.graph.node))
        tested |= {find(n.domain, n.op_type, opsets[n.domain]) for n in nodes}
        # If, Loop and Scan run in their explicit form
        forms = {n.op_type for n in nodes} & {"If", "Loop", "Scan"}
        tested |= {find("ai.onward", op_type, 1) for op_type in forms}
    return frozenset(tested)


_CLASSES = {
    cls
    for (domain, _), versions in registered().items()
    for cls in versions.values()
    if domain != "com.microsoft"  # see the suite beside this one
}


@pytest.mark.parametrize("cls", sorted(_CLASSES, key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_class_has_a_case(cls: type[Op]) -> None:
    assert (cls in _tested()) != (cls.__name__ in NO_NODE_CASE)
