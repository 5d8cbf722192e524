"""Resize: ties that are ties, what is refused, and integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.errors import ShapeError
from onward.graph import Array, Builder


def _model(x: Array, attrs: dict[str, Any], *operands: Any, opset: int = 21) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="resize")
    g = Builder(graph)
    value = g.input("x", ir.tensor(x).dtype, x.shape)
    g.output(g.emit("Resize", value, *operands, name="resize", **attrs)[0], "y")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("engine", [Interpreter, CompiledEngine])
def test_a_tie_is_one_whatever_the_scale(engine: Any) -> None:
    x = np.arange(20, dtype=np.float32).reshape(1, 1, 1, 20)
    attrs = {"mode": "nearest", "nearest_mode": "round_prefer_ceil"}
    model = _model(x, attrs, None, None, [1, 1, 1, 6])
    made = engine(model.graph) if engine is Interpreter else engine(model, threads=1)
    assert made.run({"x": x})["y"].ravel().tolist() == [1, 5, 8, 11, 15, 18]


def test_new_extents_are_those_of_inference() -> None:
    x = np.zeros((1, 1, 10, 10), np.float32)
    model = _model(x, {}, None, np.float32([1, 1, 0.7, 0.7]))
    assert Interpreter(model.graph).run({"x": x})["y"].shape == (1, 1, 7, 7)


def test_integers_are_rounded_and_saturate() -> None:
    x = np.array([[0, 255, 0, 255]], np.uint8)
    model = _model(
        x, {"mode": "cubic", "coordinate_transformation_mode": "asymmetric"}, None, np.float32([1, 2])
    )
    y = Interpreter(model.graph).run({"x": x})["y"]
    assert y.dtype == np.uint8
    assert y.tolist() == [[0, 151, 255, 128, 0, 104, 255, 255]]


@pytest.mark.parametrize(
    ("attrs", "operands", "message"),
    [
        ({"axes": [2, 3]}, (None, np.float32([1, 1, 2, 2])), "does not match the number of axes"),
        ({}, (None, np.float32([1, 1, -2, 2])), "not positive|scale"),
        ({"mode": "area"}, (None, np.float32([1, 1, 2, 2])), "mode 'area' is unknown"),
        ({"antialias": 1}, (None, np.float32([1, 1, 2, 2])), "antialias needs mode linear or cubic"),
        (
            {"coordinate_transformation_mode": "tf_crop_and_resize"},
            (None, np.float32([1, 1, 2, 2])),
            "tf_crop_and_resize needs a roi of 8 numbers",
        ),
    ],
)
def test_what_is_refused(attrs: dict[str, Any], operands: tuple[Any, ...], message: str) -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    with pytest.raises(ShapeError, match=f"operator Resize.*({message})"):
        Interpreter(_model(x, attrs, *operands).graph).run({"x": x})
