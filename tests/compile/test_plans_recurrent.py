"""Plans of recurrent operators and their gradients beside the interpreter."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tests.compile.plans import Planned, assert_as_exact, planned, wide
from tests.ops.cases_recurrent import RECURRENT, case
from tests.ops.harness import Array, Case, feed, in_double, model_of, run

from onward.compile.codegen.target import LANES, host_target

_USABLE = [n for n in LANES if n <= host_target().lanes]
_COMPILED = {"Relu", "Sigmoid", "Softsign", "Tanh"}


def _check(case: Case, *, threads: int = 2, lanes: int | None = None) -> Planned:
    """The results and all gradients of a case are those of the interpreter."""
    model = model_of(case, gradient=bool(case.wrt))
    inputs = feed(case, model)
    plan = planned(model, inputs, threads=threads, lanes=lanes)
    exact_model, exact_inputs = in_double(model, inputs)
    single, exact = run(model, inputs), run(exact_model, wide(exact_inputs))
    for turn in range(2):
        assert_as_exact(plan.run(inputs), single, exact, f"run {turn}:")
    return plan


def _native(case: Case) -> bool:
    return set(case.attrs.get("activations", ())) <= _COMPILED


@pytest.mark.parametrize("lanes", _USABLE)
@pytest.mark.parametrize("case", [c for c in RECURRENT if _native(c)], ids=lambda c: c.id)
def test_variants(case: Case, lanes: int) -> None:
    plan = _check(case, lanes=lanes)
    declined = {text.split(" ")[0] for text in plan.fallbacks}
    # the slope of a clipped activation does not follow from its result
    assert declined == ({f"{case.op_type}Grad"} if case.wrt and case.attrs.get("clip") else set())


def test_other_activations_run_in_numpy() -> None:
    (found,) = (c for c in RECURRENT if c.attrs.get("activations") == ("Softplus",))
    assert set(_check(found).fallbacks.values()) == {
        "activation softplus",
        "the states of RNN are not kept",
    }


def _sized(op_type: str, time: int, batch: int, size: int, attrs: Mapping[str, Any], **options: Any) -> Case:
    """A case with other extents, and weights that do not make rounding grow from step to step."""
    small = case(op_type, {"hidden_size": size, **attrs}, name="", **options)
    rng = np.random.default_rng(size)
    directions, gates, units = small.inputs[2]
    gates = gates // units * size
    state = (batch, directions, size) if attrs.get("layout") else (directions, batch, size)
    replaced: list[Any] = [
        (batch, time, 5) if attrs.get("layout") else (time, batch, 5),
        rng.normal(size=(directions, gates, 5)),
        rng.normal(size=(directions, gates, size), scale=size**-0.5),
        (directions, 2 * gates),
        None,
        *(state for _ in small.inputs[5:]),
    ]
    return Case(
        op_type,
        replaced[: len(small.inputs)],
        small.attrs,
        outputs=small.outputs,
        wrt=small.wrt,
        name=f"{op_type} {time}x{batch}x{size} {sorted(attrs.items())}",
    )


_EXTENTS = [(1, 1, 1), (7, 1, 19), (1, 3, 64), (7, 3, 21), (5, 17, 33), (3, 30, 70)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("extents", _EXTENTS, ids=str)
@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_extents(op_type: str, extents: tuple[int, int, int], threads: int) -> None:
    for direction, initial in itertools.product(("reverse", "bidirectional"), (False, True)):
        _check(_sized(op_type, *extents, {"direction": direction}, initial=initial), threads=threads)


@pytest.mark.parametrize("lanes", _USABLE)
@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_extents_at_every_width(op_type: str, lanes: int) -> None:
    for attrs in ({}, {"linear_before_reset": 1, "layout": 1}):
        given = {k: v for k, v in attrs.items() if k == "layout" or op_type == "GRU"}
        _check(_sized(op_type, 6, 11, 37, given, initial=True), lanes=lanes)


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_long_sequences(op_type: str) -> None:
    """Beyond a thousand steps a plan is as long as for one."""
    short, long = (_check(_sized(op_type, n, 2, 8, {})) for n in (3, 1200))
    assert len(long.plan.rows) == len(short.plan.rows)


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_nan_and_infinity_travel(op_type: str) -> None:
    """A NaN in one sequence reaches its later steps and no other sequence."""
    found = _sized(op_type, 4, 3, 20, {})
    model = model_of(found)
    inputs = feed(found, model)
    inputs["x0"][1, 2, 0] = np.nan
    inputs["x0"][2, 0, 0] = np.inf
    got, want = planned(model, inputs).run(inputs), run(model, inputs)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6)
    assert np.isnan(got["y0"][1:, 0, 2]).all()
    assert not np.isnan(got["y0"][:, 0, 1]).any()


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_equal_bits_every_time(op_type: str) -> None:
    found = _sized(op_type, 5, 13, 24, {"direction": "bidirectional"})
    model = model_of(found, gradient=True)
    inputs = feed(found, model)
    first: dict[str, Array] = planned(model, inputs).run(inputs)
    second = planned(model, inputs).run(inputs)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array, err_msg=name)
