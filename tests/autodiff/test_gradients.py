"""The engine of differentiation; the rules of operators are tested in tests/ops/test_gradients.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onward.autodiff import gradients, sum_to
from onward.engine import Interpreter
from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Builder, canonical_model, dims_of
from onward.passes import expand_onward

DOUBLE = ir.DataType.DOUBLE
Dims = Sequence[int | str | None] | None


def graph() -> Builder:
    return Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="test"))


def source(g: Builder, name: str, dims: Dims) -> ir.Value:
    value = g.input(name, DOUBLE, dims or ())
    if dims is None:
        value.shape = None
    return value


def differentiate(
    build: Callable[..., ir.Value], arrays: dict[str, np.ndarray], dims: dict[str, Dims]
) -> dict[str, np.ndarray | None]:
    """Gradients of sum(build(...) · c), c a fixed random tensor, checked against central differences."""
    g = graph()
    inputs = [source(g, name, dims[name]) for name in arrays]
    y = build(g, *inputs)
    counted = g.CumSum(g.Add(g.Mul(g.Flatten(y, axis=0), 0.0), 1.0), 1)
    weights = g.Mul(y, g.Sin(g.reshape_like(counted, y)))
    loss = g.ReduceSum(weights, keepdims=0)
    found = gradients(g, {loss: g.const(1.0, DOUBLE)}, inputs)
    g.output(loss, "loss")
    for name, dy in zip(arrays, found, strict=True):
        if dy is not None:
            g.output(dy, f"d{name}")
    run = Interpreter(g.graph)
    results = run.run(arrays)
    for name, array in arrays.items():
        if f"d{name}" not in results:
            continue
        assert results[f"d{name}"].shape == array.shape
        for index in np.ndindex(array.shape):
            moved = [{**arrays, name: array.copy()} for _ in range(2)]
            moved[0][name][index] += 1e-6
            moved[1][name][index] -= 1e-6
            up, down = (run.run(m, ["loss"])["loss"] for m in moved)
            np.testing.assert_allclose(results[f"d{name}"][index], (up - down) / 2e-6, rtol=1e-6, atol=1e-7)
    return {name: results.get(f"d{name}") for name in arrays}


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shapes", "dims"),
    [
        (((2, 3), (3,)), ([2, 3], [3])),
        (((2, 3), (2, 1)), ([2, 3], [2, 1])),
        (((2, 3), ()), ([2, 3], [])),
        (((2, 1), (1, 3)), ([2, 1], [1, 3])),
        (((2, 3), (1, 3)), (["N", 3], [1, 3])),
        (((2, 3), (1, 3)), (["N", 3], ["M", 3])),
        (((2, 3), (2, 3)), (["N", 3], ["M", 3])),
        (((2, 3), (1, 3)), ([None, 3], [None, 3])),
        (((1, 3), (2, 3)), ([None, None], [None, None])),
        (((2, 3), (3,)), (["N", 3], ["M"])),
        (((2, 3), (1, 1)), (None, [1, 1])),
        (((2, 3), (3,)), (None, [3])),
        (((2, 3), (1,)), (None, None)),
        (((4, 2, 3), (2, 1)), ([None, 2, 3], [None, None])),
    ],
)
def test_gradients_are_summed_over_broadcast_axes(shapes: Any, dims: Any) -> None:
    arrays = {name: RNG.standard_normal(shape) for name, shape in zip("ab", shapes, strict=True)}
    declared = dict(zip("ab", dims, strict=True))
    found = differentiate(lambda g, a, b: g.Mul(g.Add(a, b), b), arrays, declared)
    assert all(d is not None for d in found.values())


def test_axes_that_are_known_cost_nothing_at_run_time() -> None:
    g = graph()
    a, b = source(g, "a", ["N", 3]), source(g, "b", [3])
    y = g.Add(a, b)
    before = len(list(g.graph))
    gradients(g, {y: g.input("dy", DOUBLE, ["N", 3])}, [a, b])
    assert [n.op_type for n in list(g.graph)[before:]] == ["ReduceSum", "Squeeze"]


def test_an_operand_alone_needs_no_sum_whatever_its_shape() -> None:
    g = graph()
    x = source(g, "x", [None, 3])
    y = g.Tanh(g.Sin(x))
    gradients(g, {y: g.input("dy", DOUBLE, [None, 3])}, [x])
    assert not {"NonZero", "ReduceSum"} & {n.op_type for n in g.graph}


def test_sum_to_keeps_the_operands_shape() -> None:
    g = graph()
    dy, x = source(g, "dy", [4, "N", 3]), source(g, "x", ["N", 1])
    assert dims_of(sum_to(g, dy, x)) == ("N", 1)


def test_several_uses_add_up() -> None:
    x = {"x": RNG.standard_normal((2, 3))}
    found = differentiate(lambda g, x: g.Add(g.Mul(x, x), g.Mul(g.Sin(x), x)), x, {"x": [2, 3]})
    assert found["x"] is not None


def test_a_shared_operand_of_one_node_counts_twice() -> None:
    x = {"x": RNG.standard_normal((3, 3))}
    assert differentiate(lambda g, x: g.MatMul(x, x), x, {"x": [3, 3]})["x"] is not None


def test_what_the_seeds_do_not_reach_has_none() -> None:
    arrays = {name: RNG.standard_normal(2) for name in "xyz"}
    g = graph()
    x, y, z = (source(g, name, [2]) for name in arrays)
    used = g.Mul(x, 2.0)
    beyond = g.Mul(used, y)
    through_integers = g.Cast(g.Cast(z, to=int(ir.DataType.INT64)), to=int(DOUBLE))
    total = g.Add(used, through_integers)
    found = gradients(g, {total: g.const(np.ones(2))}, [x, y, z, beyond])
    assert found[0] is not None
    assert found[1:] == [None, None, None]


def test_values_inside_and_at_the_seed() -> None:
    """wrt may be intermediate, seeded, seeded and used further, or twice in the list."""
    g = graph()
    x = source(g, "x", [2])
    inner = g.Mul(x, 3.0)
    outer = g.Mul(inner, inner)
    found = gradients(g, {outer: g.const(np.ones(2)), inner: g.const(np.full(2, 10.0))}, [x, inner, outer, x])
    assert found[0] is found[3]
    for value, name in zip(found, ["x'", "inner'", "outer'"], strict=False):
        assert value is not None
        g.output(value, name)
    results = Interpreter(g.graph).run({"x": np.array([1.0, -2.0])})
    np.testing.assert_allclose(results["inner'"], [16, -2])
    np.testing.assert_allclose(results["x'"], [48, -6])
    np.testing.assert_allclose(results["outer'"], [1, 1])


def test_nodes_off_the_path_need_no_gradient() -> None:
    g = graph()
    x = source(g, "x", [3])
    index = g.Unsqueeze(g.ArgMax(x, keepdims=0), [0])
    y = g.Mul(g.Gather(x, index), 2.0)
    g.Round(x)
    (dx,) = gradients(g, {y: g.const(np.ones(1))}, [x])
    assert dx is not None
    g.output(dx, "dx")
    results = Interpreter(g.graph).run({"x": np.array([1.0, 5.0, 2.0])})
    np.testing.assert_array_equal(results["dx"], [0, 2, 0])


def test_all_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from onward.graph import find

    g = graph()
    x = source(g, "x", [3])
    y = g.Sin(g.Cos(x))
    foreign = ir.node("Strange", [y], domain="com.example", name="foreign")
    foreign.outputs[0].name, foreign.outputs[0].type = "z", ir.TensorType(DOUBLE)
    g.graph.append(foreign)
    g.graph.opset_imports["com.example"] = 1
    for op_type in ("Sin", "Cos"):
        monkeypatch.delattr(find("", op_type, 21), "gradient")
    with pytest.raises(UnsupportedError) as caught:
        gradients(g, {foreign.outputs[0]: g.const(np.ones(3))}, [x])
    lines = str(caught.value).splitlines()
    assert lines[0] == "no gradient is known for:"
    assert lines[1:3] == ["  node 'Cos', operator Cos, opset 21", "  node 'Sin', operator Sin, opset 21"]
    assert lines[3].startswith("  node 'foreign', operator Strange, opset 1: ")
    assert lines[4] == "freeze the parameters before these nodes, or cut the model behind them"


def test_values_that_only_a_body_uses_are_not_lost() -> None:
    """A weight that an If reads from around it counts, or the graph is refused where it is not canonical."""
    g = graph()
    x, flag = source(g, "x", [2]), g.input("flag", ir.DataType.BOOL, ())
    branches = []
    for name, op_type in (("then", "Neg"), ("else", "Abs")):
        node = ir.node(op_type, [x], name=name)
        node.outputs[0].name, node.outputs[0].type = f"{name}.y", ir.TensorType(DOUBLE)
        branches.append(ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 21}, name=name))
    chosen = ir.node("If", [flag], {"then_branch": branches[0], "else_branch": branches[1]}, name="choice")
    chosen.outputs[0].name, chosen.outputs[0].type = "y", ir.TensorType(DOUBLE)
    g.graph.append(chosen)
    total = g.Add(chosen.outputs[0], x)
    with pytest.raises(UnsupportedError, match="node 'choice', operator If"):
        gradients(g, {total: g.const(np.ones(2))}, [x])
    g.output(total, "total")
    model = canonical_model(ir.Model(g.graph, ir_version=10))
    g = Builder(model.graph)
    (dx,) = gradients(g, {model.graph.outputs[0]: g.const(np.ones(2))}, [model.graph.inputs[0]])
    assert dx is not None
    g.output(dx, "dx")
    for flagged, slope in ((True, 0.0), (False, 2.0)):
        got = Interpreter(model.graph).run({"x": np.array([1.0, 2.0]), "flag": np.array(flagged)})
        assert got["dx"].tolist() == [slope, slope]


def test_second_derivatives() -> None:
    """The gradient of a gradient, through the bodies of what ai.onward adds."""
    g = graph()
    x, w = source(g, "x", [1, 2, 4]), source(g, "w", [1, 2, 3])
    y = g.Tanh(g.Conv(x, w))
    (dw,) = gradients(g, {y: g.const(np.ones((1, 1, 2)))}, [w])
    assert dw is not None
    g.output(dw, "first")
    model = expand_onward(ir.Model(g.graph, ir_version=10))
    g = Builder(model.graph)
    inputs = {v.name: v for v in model.graph.inputs}
    (ddw,) = gradients(g, {model.graph.outputs[0]: g.const(np.ones((1, 2, 3)))}, [inputs["w"]])
    assert ddw is not None
    g.output(ddw, "second")
    run = Interpreter(model.graph)
    feeds = {"x": RNG.standard_normal((1, 2, 4)), "w": RNG.standard_normal((1, 2, 3))}
    second = run.run(feeds)["second"]
    for index in np.ndindex(1, 2, 3):
        step = np.zeros((1, 2, 3))
        step[index] = 1e-6
        up, down = (run.run({**feeds, "w": feeds["w"] + s})["first"].sum() for s in (step, -step))
        np.testing.assert_allclose(second[index], (up - down) / 2e-6, rtol=1e-5, atol=1e-8)


def test_the_second_output_of_cross_entropy_has_no_gradient() -> None:
    g = graph()
    scores = source(g, "scores", (2, 3))
    labels = g.const([0, 1])
    loss, log_prob = g.emit("SoftmaxCrossEntropy", scores, labels, domain=ONWARD_DOMAIN, outputs=2)
    total = g.Add(loss, g.ReduceSum(log_prob, keepdims=0))
    with pytest.raises(UnsupportedError, match="log_prob"):
        gradients(g, {total: g.const(1.0, DOUBLE)}, [scores])
    with pytest.raises(UnsupportedError, match="log_prob"):
        gradients(g, {log_prob: log_prob}, [scores])
