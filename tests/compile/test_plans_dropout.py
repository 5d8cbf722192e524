"""Dropout in plans: the same units as in the interpreter, bit for bit, in every layout."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import planned

from onward.engine.interpreter import Interpreter
from onward.graph import Array, Builder


def _model(rank: int, *, pooled: bool) -> ir.Model:
    """Dropout of x, or of x pooled by windows of one element, which leaves it channels-last."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="drop")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, [f"d{i}" for i in range(rank)])
    seed, step = (g.input(name, ir.DataType.INT64, ()) for name in ("seed", "step"))
    value = g.MaxPool(x, kernel_shape=[1] * (rank - 2)) if pooled else x
    y = g.onward.PhiloxDropout(value, seed, step, ratio=0.3, salt=0xFEDCBA98)
    g.output(g.MaxPool(y, kernel_shape=[1] * (rank - 2)) if pooled else y, "y")
    return ir.Model(graph, ir_version=10)


def _check(shape: tuple[int, ...], *, pooled: bool = False, lanes: int | None = None) -> None:
    model = _model(len(shape), pooled=pooled)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    inputs: dict[str, Array] = {"x": x, "seed": np.array(5), "step": np.array(0)}
    plan = planned(model, inputs, lanes=lanes)
    assert plan.fallbacks == {}
    for seed, step in ((5, 0), (-3, 1), (2**62 + 7, 2**40 + 9)):
        inputs |= {"seed": np.array(seed), "step": np.array(step)}
        want = Interpreter(model.graph).run(inputs)["y"]
        got = plan.run(inputs)["y"]
        np.testing.assert_array_equal(got, want)
        assert np.array_equal(np.signbit(got), np.signbit(want))


@pytest.mark.parametrize("shape", [(1,), (37,), (5, 1), (3, 5), (1, 64), (2, 3, 5), (2, 3, 4, 5), (600, 17)])
def test_plain_values(shape: tuple[int, ...], usable_lanes: list[int]) -> None:
    for lanes in usable_lanes:
        _check(shape, lanes=lanes)


@pytest.mark.parametrize(
    "shape", [(2, 3, 5), (2, 1, 7), (3, 4, 1), (2, 19, 3, 5), (1, 16, 4, 1), (2, 1, 3, 3)]
)
def test_images(shape: tuple[int, ...], usable_lanes: list[int]) -> None:
    for lanes in usable_lanes:
        _check(shape, pooled=True, lanes=lanes)


def test_special_values_travel() -> None:
    model = _model(1, pooled=False)
    x = np.tile(np.array([np.nan, np.inf, -np.inf, 1e-41, -0.0], np.float32), 20)
    inputs = {"x": x, "seed": np.array(1), "step": np.array(2)}
    np.testing.assert_array_equal(
        planned(model, inputs).run(inputs)["y"], Interpreter(model.graph).run(inputs)["y"]
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_shares_of_a_batch_drop_what_the_whole_drops(threads: int) -> None:
    x = np.random.default_rng(0).standard_normal((11, 3, 5)).astype(np.float32)
    scalars: dict[str, Array] = {"seed": np.array(5), "step": np.array(9)}
    whole = Interpreter(_model(3, pooled=False).graph).run({"x": x, **scalars})["y"]
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="drop")
    g = Builder(graph)
    operands = [g.input(name, ir.DataType.INT64, ()) for name in ("seed", "step")]
    share = g.input("share", ir.DataType.INT64, (2,))
    part = g.input("x", ir.DataType.FLOAT, ("d0", "d1", "d2"))
    g.output(g.onward.PhiloxDropout(part, *operands, share, ratio=0.3, salt=0xFEDCBA98), "y")
    model = ir.Model(graph, ir_version=10)
    for first, last in ((0, 4), (4, 5), (5, 11)):
        inputs = {"x": x[first:last], "share": np.array([first, last - first]), **scalars}
        plan = planned(model, inputs, threads=threads)
        assert plan.fallbacks == {}
        np.testing.assert_array_equal(plan.run(inputs)["y"], whole[first:last])
        np.testing.assert_array_equal(Interpreter(graph).run(inputs)["y"], whole[first:last])
