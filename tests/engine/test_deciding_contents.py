"""Inputs whose contents decide shapes: plans are for contents that repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onward.compile.deciding import deciding_inputs
from onward.engine import Session, compiled
from onward.engine.compiled import CompiledEngine
from onward.errors import ShapeError
from onward.graph import canonical_model
from onward.model import from_bytes
from onward.model.versions import upgrade

TEXT = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, M] x, int64[K] axes, int64[2] shape, int64 other) => (float[A, B] y, int64 z)
{
    total = ReduceSum<keepdims = 0>(x, axes)
    extents = Max(shape, shape)
    wide = Expand(total, extents)
    y = Sigmoid(wide)
    z = Add(other, other)
}"""


def _model() -> Any:
    return upgrade(from_bytes(onnx.parser.parse_model(TEXT).SerializeToString()))


def _feed(axes: list[int], shape: list[int]) -> dict[str, Any]:
    x = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
    given = {"axes": np.array(axes, np.int64), "shape": np.array(shape, np.int64)}
    return {"x": x, **given, "other": np.asarray(np.int64(5))}


def _shapes(feed: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: x.shape for name, x in feed.items()}


def test_inputs_that_shapes_follow_from_are_found() -> None:
    assert deciding_inputs(canonical_model(_model()).graph) == ("axes", "shape")


@pytest.mark.parametrize(("axes", "shape"), [([0], [2, 3]), ([1], [2, 4]), ([-1, 0], [3, 1])])
def test_plans_for_contents_are_compiled_and_right(axes: list[int], shape: list[int]) -> None:
    feed = _feed(axes, shape)
    expected = Session(_model(), engine="interpreter").run(feed)
    engine = CompiledEngine(_model(), threads=1)
    plan = engine.plan(_shapes(feed), feed)
    assert plan is not None
    assert plan.rows
    assert not [row for row in plan.rows if row.reason]
    for _ in range(2):
        found = engine.run(feed)
        np.testing.assert_array_equal(found["z"], 10)
        np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-6)
    assert engine.plan(_shapes(feed)) is None


def test_contents_of_one_shape_are_told_apart() -> None:
    with Session(_model(), engine="compiled") as session:
        for shape in ([2, 3], [4, 3], [2, 3], [4, 3], [4, 3], [1, 3]):
            y = session.run(_feed([0], shape))["y"]
            assert y.shape == tuple(shape)


def test_contents_that_do_not_repeat_get_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CompiledEngine(_model(), threads=1)
    made: list[Any] = []
    lowered = engine._made
    monkeypatch.setattr(engine, "_made", lambda given, swapped: made.append(given) or lowered(given, swapped))
    for rows in range(1, 9):
        assert engine.run(_feed([0, 1], [rows, 1]))["y"].shape == (rows, 1)
    with_contents = [given for given in made if compiled._contents_in(given)]
    assert len(with_contents) <= 1  # the first ones, if the disk does not have their plan
    feed = _feed([0, 1], [8, 1])
    engine.run(feed)
    assert engine._given(_shapes(feed), feed) in engine._plans


def test_contents_that_do_not_fit_are_refused_by_name() -> None:
    with Session(_model(), engine="compiled") as session, pytest.raises(ShapeError, match=r"ReduceSum|axis"):
        session.run(_feed([5], [2, 3]))


def test_large_inputs_decide_nothing() -> None:
    engine = CompiledEngine(_model(), threads=1)
    feed = {**_feed([0], [2, 3]), "axes": np.zeros(1000, np.int64)}
    assert [name for name, _ in compiled._contents_in(engine._given(_shapes(feed), feed))] == ["shape"]
