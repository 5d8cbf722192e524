"""Plans as bytes: what is read is what was written, and what is not a plan is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import Planned, planned
from tests.compile.test_plans_zoo import make

from onward.compile.spec import PlanFallback, PlanSpec
from onward.compile.spec_file import NotStorableError, read_plan, write_plan
from onward.graph import Array, Builder


def plain(part: Any) -> Any:
    """A part of a plan in a form that compares by contents."""
    match part:
        case np.ndarray():
            return (part.dtype, part.shape, part.tobytes())
        case PlanFallback():
            operator = {f.name: plain(getattr(part.operator, f.name)) for f in fields(part.operator)}
            return (part.node, part.op_type, type(part.operator), operator, part.inputs, part.outputs)
        case tuple():
            return tuple(map(plain, part))
        case PlanSpec():
            return {f.name: plain(getattr(part, f.name)) for f in fields(part)}
    return part


def odd_model() -> tuple[ir.Model, Mapping[str, Array]]:
    """NumPy kernels with attributes of every kind, copies, integer and truth constants, checked indices."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="odd")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    at = g.input("at", ir.DataType.INT64, ("M",))
    table = g.initializer("table", np.arange(40, dtype=np.float32).reshape(8, 5))
    picked = g.Gather(table, g.Mod(g.Add(at, g.const([5], ir.DataType.INT64)), 8), axis=0)
    g.output(picked, "picked")
    whole = g.Cast(x, to=int(ir.DataType.INT32))
    summed = g.Einsum(whole, g.const(np.ones((4, 3), np.int32)), equation="ij,jk->ik")
    g.output(summed, "summed")
    g.output(g.DFT(g.Unsqueeze(x, g.const([-1], ir.DataType.INT64)), inverse=1), "spectrum")
    counts = g.TfIdfVectorizer(
        whole,
        mode="TF",
        min_gram_length=1,
        max_gram_length=2,
        max_skip_count=1,
        ngram_counts=[0, 2],
        ngram_indexes=[1, 0, 2],
        pool_int64s=[1, 5, 3, 4],
        weights=[0.5, 2.0, 1.0],
    )
    g.output(counts, "counts")
    drawn = g.Dropout(x, g.const(np.float32(0.5)), g.const(np.array(True)), seed=3)
    g.output(drawn, "drawn")
    g.output(g.CumSum(x, g.const(1, ir.DataType.INT64), reverse=1), "running")
    bits = g.BitwiseXor(g.Cast(x, to=int(ir.DataType.UINT16)), g.const(np.array([3, 1, 2, 9], np.uint16)))
    g.output(bits, "bits")
    g.output(g.OneHot(at, g.const(8, ir.DataType.INT64), g.const(np.array([0, 1], np.int32))), "hot")
    inputs = {
        "x": np.random.default_rng(0).uniform(0, 9, (3, 4)).astype(np.float32),
        "at": np.array([7, 0, 3]),
    }
    return ir.Model(graph, ir_version=10), inputs


def odd_plan() -> tuple[Planned, Mapping[str, Array]]:
    model, inputs = odd_model()
    return planned(model, inputs), inputs


@pytest.mark.parametrize(
    "name", ["mlp", "lenet5", "textcnn", "resnet20", "mobilenet_v2", "lstm_classifier", "transformer_encoder"]
)
def test_plans_of_the_zoo_come_back_as_they_were(name: str) -> None:
    zoo = make(name, 3, steps=1)
    spec = planned(zoo.step.model, zoo.feeds[0], zoo.step.bindings).plan.spec
    assert plain(read_plan(write_plan(spec))) == plain(spec)


def test_numpy_kernels_and_constants_come_back_as_they_were() -> None:
    made, _ = odd_plan()
    spec = made.plan.spec
    assert sum(isinstance(step, PlanFallback) for step in spec.steps) >= 3
    assert any(a.dtype.kind in "iu" for a in spec.constants)
    assert plain(read_plan(write_plan(spec))) == plain(spec)


def test_what_is_not_a_plan_is_refused() -> None:
    made, _ = odd_plan()
    data = write_plan(made.plan.spec)
    length = int.from_bytes(data[:8], "little")
    for wrong in (b"", data[:5], data[:200], data[: length + 8], b"\xff" * 300, data[8:]):
        with pytest.raises(NotStorableError):
            read_plan(wrong)


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("format", "onward plan 0"),
        ("steps", [["run", "rm"]]),
        ("steps", [["call", 10_000, 0, []]]),
        ("steps", [["call", 0, 0, [0, 1 << 50]]]),
        ("steps", [["call", 0, 0, [10_000, 0]]]),
        ("steps", [["call", 0, 0, [-7, 0]]]),
        ("steps", [["fallback", "n", "Nothing", ["", "Nothing", 1, {}], [], []]]),
        ("steps", [["fallback", "n", "Relu", ["", "Relu", 14, {"output_count": 1, "slope": 2}], [], []]]),
        ("buffers", [["arena", 1 << 60, 0, ""]]),
        ("buffers", [["symbol", 0, 0, "system"]]),
        ("arrays", [["object", [1], 0]]),
        ("rows", 3),
    ],
)
def test_parts_that_do_not_fit_are_refused(part: str, content: object) -> None:
    made, _ = odd_plan()
    data = write_plan(made.plan.spec)
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    assert part in head
    head[part] = content
    text = json.dumps(head).encode()
    start = -(-(length + 8) // 64) * 64
    body = len(text).to_bytes(8, "little") + text + bytes(-(len(text) + 8) % 64) + data[start:]
    with pytest.raises(NotStorableError):
        read_plan(body)
