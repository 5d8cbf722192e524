"""Both engines against the ONNX project's own expected values, in all cases of its suite."""

from __future__ import annotations

import functools

import pytest
from tests.ops.cases import CASES
from tests.ops.conformance import ENGINES, Engine, run_case, suite
from tests.ops.exclusions import NO_NODE_CASE, NODE_CASES
from tests.ops.onnx_cases import onnx_cases
from tests.ops.test_old_versions import CASES as OLD

from onward.graph import Op, find, has_body, registered
from onward.model.structure import all_nodes


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", sorted(suite("interpreter")[1]))
def test_case(name: str, engine: Engine) -> None:
    outcome = run_case(engine, name)
    if name in NODE_CASES:
        assert outcome.reason, "whatever goes wrong there, it must still go wrong"
        pytest.skip(NODE_CASES[name])
    if outcome.lacks_operator:
        pytest.skip(outcome.reason)
    assert not outcome.reason


def test_exclusions_name_cases() -> None:
    assert set(NODE_CASES) <= set(suite("interpreter")[1])


@functools.cache
def _tested() -> frozenset[type[Op]]:
    tested = {find(case.domain, case.op_type, 1 if case.domain else case.opset) for case in CASES}
    tested |= {find("", case.op_type, case.opset) for case in OLD}
    for case in onnx_cases():
        opsets = {i.domain: i.version for i in case.model.opset_import}
        nodes = list(all_nodes(case.model.graph.node))
        known = [n for n in nodes if not has_body(n.domain, n.op_type, opsets[n.domain])]
        tested |= {find(n.domain, n.op_type, opsets[n.domain]) for n in known}
        # If, Loop and Scan run in their explicit form
        forms = {n.op_type for n in nodes} & {"If", "Loop", "Scan"}
        tested |= {find("ai.onward", op_type, 1) for op_type in forms}
    return frozenset(tested)


_CLASSES = {
    cls
    for (domain, _), versions in registered().items()
    for cls in versions.values()
    if domain not in ("com.microsoft", "ai.onnx.ml")  # see the suites beside this one
}


@pytest.mark.parametrize("cls", sorted(_CLASSES, key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_class_has_a_case(cls: type[Op]) -> None:
    assert (cls in _tested()) != (cls.__name__ in NO_NODE_CASE)
