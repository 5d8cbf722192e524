"""The walk over a program: rules decide before they emit, and what they decline runs in NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.compile.plans import planned
from tests.compile.units import TARGET, floats, kinds, lowered_of, program_of, unit_of
from tests.ops.cases import CASES
from tests.ops.harness import Case, assert_same, feed, model_of, run

from onward.compile import lowering
from onward.compile.context import Queries
from onward.compile.items import Fallback
from onward.compile.lowering import lower
from onward.compile.placement import place
from onward.compile.program import NotStaticError
from onward.compile.registry import lowers
from onward.errors import OnwardError
from onward.graph import Builder, requests
from onward.passes import cast_floats


def test_what_no_kernel_computes_has_its_operand_copied_and_nothing_before_that() -> None:
    def build(g: Builder) -> ir.Value:
        return g.Det(g.Transpose(floats(g, "x", 3, 3), perm=[1, 0]))

    lowered = lowered_of(build)
    assert kinds(lowered) == ["copy", "numpy"]
    (fallback,) = (item for item in lowered.calls if isinstance(item, Fallback))
    assert fallback.reason == "no compiled kernel"


def test_integers_in_another_layout_that_are_broadcast_are_one_pass() -> None:
    def build(g: Builder) -> ir.Value:
        x = g.input("x", ir.DataType.INT64, (2, 3))
        y = g.input("y", ir.DataType.INT64, (2,))
        return g.Add(g.Transpose(x, perm=[1, 0]), y)

    assert kinds(lowered_of(build)) == ["copy", "element"]


def test_that_addition_of_integers_is_right() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="integers")
    g = Builder(graph)
    x, y = g.input("x", ir.DataType.INT64, (2, 3)), g.input("y", ir.DataType.INT64, (2,))
    g.output(g.Add(g.Transpose(x, perm=[1, 0]), y), "z")
    model, inputs = ir.Model(graph, ir_version=10), {"x": np.arange(6).reshape(2, 3), "y": np.array([10, 20])}
    np.testing.assert_array_equal(planned(model, inputs).run(inputs)["z"], inputs["x"].T + inputs["y"])


class _Watched:
    """Asks rules as the compiler does, and notices what changes meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.declined = 0
        ask = lowering._unsuited

        def watched(queries: Queries, request: requests.Request) -> str | None:
            before = self._state(queries)
            reason = ask(queries, request)
            assert self._state(queries) == before, f"asking about {type(request).__name__} changed the plan"
            self.declined += reason is not None
            return reason

        monkeypatch.setattr(lowering, "_unsuited", watched)

    @staticmethod
    def _state(queries: Queries) -> tuple[Any, ...]:
        emitted, place = queries._emitted, queries._placement
        tables = (place.plain, place.images, place.strided, emitted.kept)
        lists = (emitted.calls, emitted.prologue, emitted.input_checks)
        return (*map(len, lists), *(dict(t) for t in tables), set(place.constant), set(emitted.changing))


_TYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


def _turned(model: ir.Model, rank: dict[str, int]) -> ir.Model:
    """The model with each operand behind a window: stored transposed, and transposed back."""
    graph = model.graph
    g = Builder(graph)
    for value in list(graph.inputs):
        if rank.get(value.name or "", 0) < 2:
            continue
        uses = list(value.uses())
        # two negations keep the numbers, and store them in the other order
        back = g.Transpose(g.Neg(g.Neg(g.Transpose(value))))
        for node, index in uses:
            node.replace_input_with(index, back)
    graph.sort()
    return model


@pytest.mark.parametrize("turned", [False, True])
def test_what_declines_has_emitted_nothing(turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = _Watched(monkeypatch)

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(st.sampled_from(CASES), st.sampled_from(_TYPES), st.booleans())
    def check(case: Case, dtype: ir.DataType, empty: bool) -> None:
        model = model_of(case)
        inputs = feed(case, model, empty_batch=empty and bool(case.batch))
        if turned and case.opset >= 13:
            model = _turned(model, {name: x.ndim for name, x in inputs.items() if x.dtype == np.float32})
        if dtype != ir.DataType.FLOAT:
            model = cast_floats(model, dtype)
            inputs = {k: x.astype(dtype.numpy()) if x.dtype == np.float32 else x for k, x in inputs.items()}
        try:
            plan = planned(model, inputs)
            if turned and dtype == ir.DataType.FLOAT:
                assert_same(plan.run(inputs), run(model, inputs), 3e-5, 3e-6)
        except (NotStaticError, OnwardError):
            return

    check()
    assert watched.declined > 5


def test_a_class_of_requests_has_one_rule() -> None:
    with pytest.raises(TypeError, match="Gather has two rules"):
        lowers(requests.Gather)(lambda c, request: None)


def test_a_group_that_the_processor_cannot_compute_runs_its_operations_in_numpy() -> None:
    def build(g: Builder) -> ir.Value:
        return g.Relu(g.Neg(floats(g, "x", 2, 3, dtype=ir.DataType.FLOAT16)))

    old = replace(TARGET, cpu="x86-64-v2", triple="x86_64-unknown-linux-gnu", features="")
    unit = replace(unit_of(program_of(build)), target=old)
    lowered = lower(unit, place(unit, {}, {}), {})
    assert [
        (item.operation.node.op_type, item.reason) for item in lowered.calls if isinstance(item, Fallback)
    ] == [
        ("Neg", "the processor does not convert float16"),
        ("Relu", "the processor does not convert float16"),
    ]


def test_what_has_no_elements_is_no_call() -> None:
    assert not lowered_of(lambda g: g.Relu(g.Neg(floats(g, "x", 0, 3)))).calls


def test_a_producer_computes_the_group_behind_it_and_others_wait_for_nothing() -> None:
    def build(g: Builder) -> ir.Value:
        x, a, b = floats(g, "x", 5, 4), floats(g, "a", 4, 6), floats(g, "b", 4, 6)
        return g.Relu(g.Add(g.MatMul(x, a), g.MatMul(x, b)))

    lowered = lowered_of(build)
    labels = [item.label for item in lowered.calls]
    assert len(labels) == 2
    assert "Relu" in labels[1]
    assert "Relu" not in labels[0]
