"""What rules emit: the kernels of a request, in order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.units import floats, kinds, lowered_of

from onward.graph import Builder

I64 = ir.DataType.INT64

Build = Callable[[Builder], "ir.Value | list[ir.Value]"]


def _image(g: Builder, name: str = "x", channels: int = 3) -> ir.Value:
    return floats(g, name, 2, channels, 12, 12)


def _shared_weights(g: Builder) -> list[ir.Value]:
    w = floats(g, "w", 4, 3, 3, 3)
    return [g.Conv(_image(g), w), g.Conv(_image(g, "z"), w)]


def _adam(g: Builder) -> list[ir.Value]:
    rate, t = floats(g, "rate"), g.input("t", I64, ())
    results: list[ir.Value] = []
    for i in range(2):
        operands = [floats(g, f"{name}{i}", 8) for name in "pgmv"]
        results += g.emit(
            "AdamUpdate",
            *operands,
            rate,
            t,
            domain="ai.onward",
            outputs=3,
            beta1=0.9,
            beta2=0.99,
            epsilon=1e-8,
        )
    return results


EMITTED: dict[str, tuple[Build, list[str]]] = {
    "a convolution": (
        lambda g: g.Conv(_image(g), floats(g, "w", 4, 3, 3, 3)),
        ["copy", "pack", "conv", "copy"],
    ),
    "weights that two convolutions read are packed once": (
        _shared_weights,
        ["copy", "pack", "conv", "copy", "conv", "copy", "copy"],
    ),
    "pooling": (lambda g: g.MaxPool(_image(g), kernel_shape=[2, 2]), ["copy", "max", "copy"]),
    "an image twice as large": (
        lambda g: g.Resize(_image(g), None, np.float32([1, 1, 2, 2])),
        ["copy", "resample", "copy"],
    ),
    "a cubic filter, its sums nested": (
        lambda g: g.Resize(_image(g), None, np.float32([1, 1, 2, 2]), mode="cubic"),
        ["copy", "resample", "resample", "copy"],
    ),
    "rows of a matrix resized": (lambda g: g.Resize(floats(g, "x", 5, 7), None, None, [9, 7]), ["resample"]),
    "a sum over the last axis": (lambda g: g.ReduceSum(floats(g, "x", 5, 7), [1]), ["reduce_rows"]),
    "a sum over the first axis": (lambda g: g.ReduceSum(floats(g, "x", 5, 7), [0]), ["reduce", "finish"]),
    "softmax over an outer axis": (
        lambda g: g.Softmax(floats(g, "x", 5, 7), axis=0),
        ["copy", "softmax", "copy"],
    ),
    "layer normalization": (
        lambda g: g.LayerNormalization(floats(g, "x", 5, 7), floats(g, "s", 7)),
        ["layer_norm"],
    ),
    "Adam's factors are shared": (_adam, ["adam_factors", "element", "element"]),
    "an embedding's gradient": (
        lambda g: g.onward.GatherGrad(
            floats(g, "dy", 3, 4), g.input("i", I64, (3,)), g.const([9, 4], "int64")
        ),
        ["check", "clear", "scatter_rows"],
    ),
    "integers": (lambda g: g.Add(g.input("a", I64, (3,)), g.input("b", I64, (3,))), ["integers"]),
}


@pytest.mark.parametrize("what", EMITTED)
def test_kernels(what: str) -> None:
    build, expected = EMITTED[what]
    found = kinds(lowered_of(build))
    assert len(found) == len([e for e in expected if e != "check"]), found
    for name, wanted in zip(found, [e for e in expected if e != "check"], strict=True):
        assert wanted.split("_")[0] in name
