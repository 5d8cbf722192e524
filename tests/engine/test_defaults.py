"""Inputs that are initializers too: the default stands, a value that is given replaces it for one run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onward.engine.session import Session
from onward.errors import InputError
from onward.model import from_bytes

MODEL = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 2] x, float[2, 2] w, float[K] b, int64[1] axes) => (float[M] y)
  <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {10, 20}, int64[1] axes = {0}> {
  t = MatMul(x, w)
  s = Add(t, b)
  y = ReduceSum<keepdims = 0>(s, axes)
}"""
X = np.array([[1, 1], [2, 0]], np.float32)


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_a_given_value_replaces_the_default_for_one_run(engine: Any) -> None:
    session = Session(from_bytes(onnx.parser.parse_model(MODEL).SerializeToString()), engine=engine)
    assert [spec.name for spec in session.inputs] == ["x"]
    assert [spec.name for spec in session.defaults] == ["w", "b", "axes"]
    default = np.array([26, 50], np.float32)
    assert session.run({"x": X})["y"].tolist() == default.tolist()
    given = session.run({"x": X, "b": np.array([1], np.float32)})["y"]
    assert given.tolist() == [8, 12]
    assert session.run({"x": X, "axes": np.array([1])})["y"].tolist() == [40, 36]
    assert session.run({"x": X, "w": np.eye(2, dtype=np.float32)})["y"].tolist() == [23, 41]
    assert session.run({"x": X})["y"].tolist() == default.tolist()


@pytest.mark.parametrize("wrong", [np.ones(2), np.ones((1, 2), np.float32)])
def test_a_default_is_checked_as_every_input(wrong: np.ndarray[Any, Any]) -> None:
    session = Session(from_bytes(onnx.parser.parse_model(MODEL).SerializeToString()), engine="interpreter")
    with pytest.raises(InputError, match="input 'b'"):
        session.run({"x": X, "b": wrong})
