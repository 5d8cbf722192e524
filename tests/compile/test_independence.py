"""Which models treat each sample by itself, as far as the graph proves it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from tests.verify.test_zoo_training import SMALL

from onward.compile.independence import not_independent
from onward.engine import Session
from onward.graph import Builder
from onward.nn import zoo

TAIL = (3, 4)

Body = Callable[[Builder, ir.Value], ir.Value]


def model(body: Body, tail: tuple[int, ...] = TAIL, output: str | int = "N") -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="samples")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", *tail))
    y = g.Identity(body(g, x))
    rank = 1 if y.shape is None else len(y.shape)
    y.shape = ir.Shape([output, *[None] * (rank - 1)])
    g.output(y, "y")
    return ir.Model(graph, ir_version=10)


def weight(g: Builder, name: str, *shape: int) -> ir.Value:
    return g.initializer(name, np.random.default_rng(len(name)).normal(size=shape).astype(np.float32))


def rows(g: Builder, x: ir.Value) -> ir.Value:
    """The number of samples as a vector of one."""
    return g.Gather(g.Shape(x), g.const([0], np.int64))


def as_exported(g: Builder, x: ir.Value) -> ir.Value:
    """A shape put together from extents."""
    return g.Reshape(x, g.Concat(rows(g, x), g.const([12], np.int64), axis=0))


def recurrent(g: Builder, x: ir.Value) -> ir.Value:
    """Time first; the initial state is made of the number of samples."""
    state = g.ConstantOfShape(g.Concat(g.const([1], np.int64), rows(g, x), g.const([5], np.int64), axis=0))
    steps = g.Transpose(x, perm=[1, 0, 2])
    w, r = weight(g, "w", 1, 20, 4), weight(g, "of states", 1, 20, 5)
    y, *_ = g.emit("LSTM", steps, w, r, None, None, state, state, hidden_size=5, outputs=3)
    return g.Transpose(g.Squeeze(y, g.const([1], np.int64)), perm=[1, 0, 2])


def class_token(g: Builder, x: ir.Value) -> ir.Value:
    shape = g.Concat(rows(g, x), g.const([1, 4], np.int64), axis=0)
    return g.Concat(g.Expand(weight(g, "token", 1, 1, 4), shape), x, axis=1)


def attention(g: Builder, x: ir.Value) -> ir.Value:
    return g.MatMul(g.Softmax(g.MatMul(x, g.Transpose(x, perm=[0, 2, 1])), axis=-1), x)


def whole_cut(g: Builder, x: ir.Value) -> ir.Value:
    ends = g.const([2**63 - 1, 2], np.int64)
    return g.Slice(x, g.const([0, 0], np.int64), ends, g.const([0, 1], np.int64))


def twice_the_samples(g: Builder, x: ir.Value) -> ir.Value:
    """A view through [2 N, 6] and back."""
    wide = g.Concat(g.Mul(rows(g, x), g.const([2], np.int64)), g.const([6], np.int64), axis=0)
    return g.Reshape(g.Reshape(x, wide), g.const([-1, 3, 4], np.int64))


PROVEN: dict[str, Body] = {
    "formula": lambda g, x: g.Relu(g.Add(x, weight(g, "w", 4))),
    "product": lambda g, x: g.MatMul(x, weight(g, "w", 4, 5)),
    "rows of matrices": lambda g, x: g.Gemm(g.Flatten(x), weight(g, "w", 12, 5), weight(g, "b", 5)),
    "mean of others": lambda g, x: g.ReduceMean(x, g.const([1], np.int64)),
    "softmax": lambda g, x: g.Softmax(x, axis=-1),
    "layer norm": lambda g, x: g.LayerNormalization(x, weight(g, "w", 4), weight(g, "b", 4)),
    "as exported": as_exported,
    "recurrent": recurrent,
    "class token": class_token,
    "attention": attention,
    "whole cut": whole_cut,
    "there and back": lambda g, x: g.Transpose(g.Transpose(x, perm=[1, 2, 0]), perm=[2, 0, 1]),
    "largest": lambda g, x: g.ArgMax(x, axis=2, keepdims=0),
    "heads": lambda g, x: g.Reshape(
        g.Transpose(g.Reshape(x, g.const([0, 3, 2, 2], np.int64)), perm=[0, 2, 1, 3]),
        g.const([0, -1], np.int64),
    ),
}


def by_number(g: Builder, x: ir.Value) -> ir.Value:
    """Samples are divided by their number."""
    return g.Div(x, g.Cast(rows(g, x), to=ir.DataType.FLOAT))


def at_most(g: Builder, x: ir.Value) -> ir.Value:
    """The number of samples, at most 100, as an extent: right up to 100 only."""
    few = g.Min(rows(g, x), g.const([100], np.int64))
    return g.Reshape(x, g.Concat(few, g.const([12], np.int64), axis=0))


def square(g: Builder, x: ir.Value) -> ir.Value:
    return g.MatMul(g.Transpose(g.Flatten(x), perm=[1, 0]), g.Flatten(x))


MIXED: dict[str, tuple[Body, str]] = {
    "mean": (lambda g, x: g.Add(x, g.ReduceMean(x, g.const([0], np.int64))), "samples are reduced"),
    "softmax": (lambda g, x: g.Softmax(x, axis=0), "samples are reduced"),
    "first hundred": (
        lambda g, x: g.Slice(x, g.const([0], np.int64), g.const([100], np.int64), g.const([0], np.int64)),
        "samples are cut off",
    ),
    "but the last": (
        lambda g, x: g.Pad(x, g.const([-1, 0, 0, 1, 0, 0], np.int64)),
        "samples are added or cut off",
    ),
    "backwards": (
        lambda g, x: g.Slice(
            x,
            g.const([-1], np.int64),
            g.const([-(2**62)], np.int64),
            g.const([0], np.int64),
            g.const([-1], np.int64),
        ),
        "samples are cut off",
    ),
    "first sample": (
        lambda g, x: g.Sub(x, g.Gather(x, g.const([0], np.int64), axis=0)),
        "samples are picked",
    ),
    "by number": (by_number, "more than an extent"),
    "at most": (at_most, "more than an extent"),
    "running sum": (lambda g, x: g.CumSum(x, g.const(0, np.int64)), "nothing is known"),
    "sum of products": (
        lambda g, x: g.Add(g.Flatten(x), g.Gather(square(g, x), g.const(0, np.int64))),
        "summed over samples",
    ),
    "all with all": (
        lambda g, x: g.MatMul(g.Flatten(x), g.Transpose(g.Flatten(x), perm=[1, 0])),
        "summed over samples",
    ),
    "across": (
        lambda g, x: g.Add(
            g.Reshape(x, g.const([-1, 1, 12], np.int64)), g.Reshape(x, g.const([1, -1, 12], np.int64))
        ),
        "different axes",
    ),
    "joined": (lambda g, x: g.Reshape(x, g.const([-1, 4], np.int64)), "another way"),
    "moved": (lambda g, x: g.Transpose(x, perm=[1, 0, 2]), "first axis of output"),
    "constant": (lambda g, x: weight(g, "w", 3, 4), "first axis of output"),
    "twice": (twice_the_samples, "another way"),
    "fixed": (lambda g, x: g.Reshape(x, g.const([5, 12], np.int64)), "do not fit"),
    "repeated": (lambda g, x: g.Tile(x, g.const([2, 1, 1], np.int64)), "samples are repeated"),
    "behind each other": (lambda g, x: g.Concat(x, x, axis=-3), "along the samples' axis"),
}


@pytest.mark.parametrize("name", PROVEN)
def test_samples_are_proven_to_be_independent(name: str) -> None:
    made = model(PROVEN[name])
    assert not_independent(made, {"x": (1, *TAIL)}) is None
    x = np.random.default_rng(0).normal(size=(9, *TAIL)).astype(np.float32)
    session = Session(made, engine="interpreter")
    whole = session.run({"x": x})["y"]
    parts = [session.run({"x": x[at]})["y"] for at in (slice(0, 2), slice(2, 9))]
    assert np.allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MIXED)
def test_what_may_mix_samples_is_declined(name: str) -> None:
    body, reason = MIXED[name]
    assert reason in (not_independent(model(body), {"x": (1, *TAIL)}) or "")


def test_a_batch_of_its_own_statistics_is_declined() -> None:
    def normalized(g: Builder, x: ir.Value) -> ir.Value:
        stats = [weight(g, f"s{i}", 3) for i in range(4)]
        return g.emit("BatchNormalization", x, *stats, training_mode=1, outputs=3)[0]

    assert "the batch's" in (not_independent(model(normalized), {"x": (1, *TAIL)}) or "")


def test_surfaces_without_a_common_axis_are_declined() -> None:
    fixed = model(lambda g, x: g.Relu(x), output=8)
    assert "no symbol names the first axis" in (not_independent(fixed, {"x": (8, *TAIL)}) or "")
    other = model(lambda g, x: g.Relu(x), output="M")
    assert "no symbol names the first axis" in (not_independent(other, {"x": (8, *TAIL)}) or "")


@pytest.mark.parametrize("name", SMALL)
def test_networks_of_the_zoo_are_proven(name: str) -> None:
    made = zoo.build(name, **SMALL[name]).model
    shapes = {
        v.name or "": tuple(d if isinstance(d, int) else 1 for d in v.shape or ()) for v in made.graph.inputs
    }
    assert not_independent(made, shapes) is None
