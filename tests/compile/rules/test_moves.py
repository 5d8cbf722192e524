"""Moves: windows where memory allows, copies where not."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
from tests.compile.rules.checks import check
from tests.compile.units import floats, kinds, lowered_of

from onward.compile.items import Fallback
from onward.graph import Builder

MOVES: dict[str, tuple[Callable[[Builder, ir.Value], ir.Value], list[str]]] = {
    "a transposition that a product reads": (lambda g, x: g.MatMul(g.Transpose(x), x), ["gemm"]),
    "a slice that a product reads": (lambda g, x: g.MatMul(g.Slice(x, [1], [3], [0]), x), ["gemm"]),
    "a view of a view": (lambda g, x: g.Relu(g.Reshape(g.Reshape(x, [2, 8]), [16])), ["element"]),
    "a broadcast that a product reads": (lambda g, x: g.MatMul(g.Expand(x, [3, 4, 4]), x), ["gemm"]),
    "a concatenation": (lambda g, x: g.Concat(x, x, axis=1), ["copy", "copy"]),
    "tiles": (lambda g, x: g.Tile(x, [2, 3]), ["copy"]),
    "nothing to pad": (lambda g, x: g.Relu(g.Pad(x, [0, 0, 0, 0])), ["element"]),
    # each run fills the border too: memory that a run writes in part is its own, not kept and shared
    "a border on one side": (lambda g, x: g.Pad(x, [1, 0, 0, 0]), ["copy"] * 2),
    "a border all around": (lambda g, x: g.Pad(x, [1, 1, 1, 1]), ["copy"] * 5),
}


@pytest.mark.parametrize("what", MOVES)
def test_calls(what: str) -> None:
    build, expected = MOVES[what]
    found = kinds(lowered_of(lambda g: build(g, floats(g, "x", 4, 4))))
    assert [k.split("_")[-1] if "gemm" in k else k for k in found] == expected


def test_pads_that_leave_nothing_are_a_window_on_the_value() -> None:
    check(lambda g: g.Pad(floats(g, "x", 4, 4), [-4, 0, 6, 0], 2.0), [])


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_pads_of_other_modes_are_gathers(mode: str) -> None:
    check(lambda g: g.Pad(floats(g, "x", 4, 5), [2, 3, 1, -2], mode=mode), ["gather", "take"])


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT16])
def test_pads_by_a_tensor(dtype: ir.DataType) -> None:
    check(
        lambda g: g.Pad(floats(g, "x", 4, 5, dtype=dtype), [0, 3, 1, -2], g.input("value", dtype, ())),
        ["copy"] * 3,
    )


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (ir.DataType.INT64, ir.DataType.FLOAT),
        (ir.DataType.INT64, ir.DataType.DOUBLE),
        (ir.DataType.DOUBLE, ir.DataType.FLOAT),
        (ir.DataType.FLOAT, ir.DataType.INT64),
        (ir.DataType.FLOAT, ir.DataType.FLOAT8E5M2),
    ],
)
def test_conversions(source: ir.DataType, target: ir.DataType) -> None:
    lowered = lowered_of(lambda g: g.Cast(floats(g, "x", 4, 4, dtype=source), to=int(target)))
    assert not [item for item in lowered.calls if isinstance(item, Fallback)]
