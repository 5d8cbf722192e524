"""Gradients behind branches that were not taken: finite where mathematics says so, and no node elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onward.autodiff import gradients, training_step
from onward.engine import Session
from onward.graph import Builder
from onward.model import trainable_initializers
from onward.nn import zoo
from onward.train import SGD, CrossEntropy

FLOAT = ir.DataType.FLOAT
X = np.array([[-2.0, -0.5, 0.0], [0.25, 1.0, 3.0]], np.float32)
ABOVE = X > 0
EXACT = X.astype(np.float64)
SAFE = np.where(ABOVE, EXACT, 1.0)


def gradient(build: Callable[[Builder, ir.Value], ir.Value], engine: str, x: np.ndarray = X) -> np.ndarray:
    """The gradient by x of the sum of what `build` writes."""
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="masked"))
    value = g.input("x", FLOAT, x.shape)
    total = g.ReduceSum(build(g, value), keepdims=0)
    (dx,) = gradients(g, {total: g.const(np.ones((), np.float32))}, [value])
    assert dx is not None
    g.output(dx, "dx")
    return Session(ir.Model(g.graph, ir_version=10), engine=engine).run({"x": x})["dx"]


def chosen(inner: Callable[[Builder, ir.Value], ir.Value]) -> Callable[[Builder, ir.Value], ir.Value]:
    return lambda g, x: g.Where(g.Greater(x, 0.0), inner(g, x), 0.0)


def where_chosen(slope: np.ndarray) -> np.ndarray:
    return np.where(ABOVE, slope, 0)


# what is selected, and its derivative where x is positive
CASES: dict[str, tuple[Callable[[Builder, ir.Value], ir.Value], np.ndarray]] = {
    "sqrt": (chosen(lambda g, x: g.Sqrt(x)), where_chosen(0.5 / np.sqrt(SAFE))),
    "log": (chosen(lambda g, x: g.Log(x)), where_chosen(1 / SAFE)),
    "quotient": (chosen(lambda g, x: g.Div(1.0, x)), where_chosen(-1 / SAFE**2)),
    "reciprocal": (chosen(lambda g, x: g.Reciprocal(x)), where_chosen(-1 / SAFE**2)),
    "power": (chosen(lambda g, x: g.Pow(x, 0.3)), where_chosen(0.3 * SAFE**-0.7)),
    "arc cosine": (
        lambda g, x: g.Where(g.Less(g.Abs(x), 0.9), g.Acos(g.Mul(x, 1.0)), 0.0),
        np.where(np.abs(EXACT) < 0.9, -1 / np.sqrt(np.maximum(1 - EXACT**2, 0.1)), 0),
    ),
    "overflow": (
        lambda g, x: g.Where(g.Less(x, 0.5), g.Exp(g.Mul(x, 100.0)), x),
        np.where(EXACT < 0.5, 100 * np.exp(100 * np.minimum(EXACT, 0.5)), 1),
    ),
    "the other branch": (
        lambda g, x: g.Where(g.LessOrEqual(x, 0.0), g.Mul(x, 3.0), g.Log(x)),
        np.where(ABOVE, 1 / SAFE, 3.0),
    ),
    "both branches": (
        lambda g, x: g.Where(g.Greater(x, 0.0), g.Log(x), g.Sqrt(g.Sub(0.25, x))),
        np.where(ABOVE, 1 / SAFE, -0.5 / np.sqrt(0.25 - np.minimum(EXACT, 0))),
    ),
    "a chain": (
        chosen(lambda g, x: g.Tanh(g.Sqrt(g.Log(g.Add(g.Mul(x, 2.0), 1.0))))),
        where_chosen(
            (1 - np.tanh(np.sqrt(np.log1p(2 * SAFE))) ** 2) / np.sqrt(np.log1p(2 * SAFE)) / (2 * SAFE + 1)
        ),
    ),
    "a product with a pole": (
        chosen(lambda g, x: g.Mul(g.Mul(x, x), g.Log(x))),
        where_chosen(2 * SAFE * np.log(SAFE) + SAFE),
    ),
    "a use beside the mask": (
        lambda g, x: g.Add(chosen(lambda g, x: g.Sqrt(x))(g, x), g.Mul(x, 5.0)),
        np.where(ABOVE, 0.5 / np.sqrt(SAFE), 0) + 5,
    ),
    "two masks": (
        lambda g, x: g.Add(
            g.Where(g.Greater(x, 0.5), (root := g.Sqrt(x)), 0.0), g.Where(g.Less(x, 0.0), 0.0, root)
        ),
        # at 0 the second branch is taken, and the root's slope there is infinite
        np.where(EXACT == 0, np.inf, where_chosen((1 + (EXACT > 0.5)) * 0.5 / np.sqrt(SAFE))),
    ),
    "nested": (
        lambda g, x: g.Where(g.Greater(x, 0.5), g.Log(g.Where(g.Greater(x, 0.0), g.Sqrt(x), -1.0)), 0.0),
        np.where(EXACT > 0.5, 0.5 / SAFE, 0),
    ),
    "relu": (lambda g, x: g.Relu(g.Log(x)), np.where(EXACT > 1, 1 / SAFE, 0)),
    "clip": (lambda g, x: g.Clip(g.Log(g.Relu(x)), -1.0, 0.5), np.where(EXACT == 1, 1 / SAFE, 0)),
    "maximum": (
        lambda g, x: g.Max(g.Log(g.Relu(x)), g.const(-5.0, FLOAT)),
        np.where(ABOVE, 1 / SAFE, 0),
    ),
    "moved": (
        lambda g, x: g.Where(
            g.Greater(g.Transpose(x, perm=[1, 0]), 0.0),
            g.Transpose(g.Reshape(g.Reshape(g.Sqrt(x), [6]), [2, 3]), perm=[1, 0]),
            0.0,
        ),
        np.where(ABOVE, 0.5 / np.sqrt(SAFE), 0),
    ),
    "summed rows": (
        lambda g, x: g.Where(
            g.Greater(g.ReduceMin(x, [1], keepdims=0), 0.0), g.ReduceSum(g.Log(x), [1], keepdims=0), 0.0
        ),
        np.where(ABOVE.all(1, keepdims=True), 1 / SAFE, 0),
    ),
    "concatenated": (
        lambda g, x: g.Where(
            g.Greater(g.Concat(x, x, axis=0), 0.0), g.Concat(g.Log(x), g.Sqrt(x), axis=0), 0.0
        ),
        np.where(ABOVE, 1 / SAFE + 0.5 / np.sqrt(SAFE), 0),
    ),
    "a mask of one column": (
        lambda g, x: g.Where(g.Greater(g.Slice(x, [0], [1], [1]), 0.0), g.Log(x), 0.0),
        np.where(ABOVE[:, :1], 1 / SAFE, 0),
    ),
    "broadcast": (
        lambda g, x: g.Where(
            g.Greater(x, 0.0), g.Div(g.Slice(x, [0], [1], [1]), g.Sqrt(x)), 0.0
        ),
        where_chosen(-0.5 * EXACT[:, :1] * SAFE**-1.5)
        + np.array([1, 0, 0]) * where_chosen(1 / np.sqrt(SAFE)).sum(1, keepdims=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
@pytest.mark.parametrize("name", CASES)
def test_what_was_not_taken_has_gradient_zero(name: str, engine: str) -> None:
    build, slope = CASES[name]
    with np.errstate(all="ignore"):
        found = gradient(build, engine)
    np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-7)


def test_a_weight_behind_the_mask_learns_from_what_counts() -> None:
    """A parameter that the whole masked chain reads: its gradient is a sum, and one NaN would spoil it."""
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="masked"))
    x, w = g.input("x", FLOAT, ("N", 3)), g.initializer("w", np.array(2.0, np.float32))
    total = g.ReduceSum(g.Where(g.Greater(x, 0.0), g.Sqrt(g.Mul(w, x)), 0.0), keepdims=0)
    (dw,) = gradients(g, {total: g.const(np.ones((), np.float32))}, [w])
    g.output(dw, "dw")
    found = Session(ir.Model(g.graph, ir_version=10)).run({"x": X})["dw"]
    np.testing.assert_allclose(found, (0.5 * np.sqrt(EXACT[ABOVE]) / np.sqrt(2)).sum(), rtol=1e-6)


def test_missing_numbers_that_a_mask_leaves_out() -> None:
    """NaN in the data stands for a missing number: no operator made it."""
    x = np.array([[1.0, np.nan, 3.0]], np.float32)
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="masked"))
    v, w = g.input("x", FLOAT, ("N", 3)), g.initializer("w", np.array(2.0, np.float32))
    known = g.Not(g.IsNaN(v))
    for name, inner in (("product", g.Mul(w, v)), ("distance", g.Abs(g.Sub(g.Mul(w, v), 1.0)))):
        total = g.ReduceSum(g.Where(known, inner, 0.0), keepdims=0)
        (dw,) = gradients(g, {total: g.const(np.ones((), np.float32))}, [w])
        g.output(dw, name)
    found = Session(ir.Model(g.graph, ir_version=10)).run({"x": x})
    assert (found["product"], found["distance"]) == (4, 4)


def test_zero_by_arithmetic_alone_is_not_masked() -> None:
    """The square of a root at 0: the derivative is 1, 0 times infinity cannot tell, and 0 would be wrong."""
    found = gradient(
        lambda g, x: g.Mul((root := g.Sqrt(x)), root), "interpreter", np.zeros((1, 1), np.float32)
    )
    assert np.isnan(found).all()


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "textcnn", "transformer_encoder", "mobilenet_v2"])
def test_ordinary_networks_have_no_node_more(name: str) -> None:
    sizes = {"vocabulary_size": 50, "length": 12} if name in ("textcnn", "transformer_encoder") else {}
    model = zoo.build(name, **sizes).model
    step = training_step(model, {"output": CrossEntropy()}, SGD(), trainable_initializers(model))
    assert not [node.name for node in step.model.graph if "grad/masked" in (node.name or "")]
