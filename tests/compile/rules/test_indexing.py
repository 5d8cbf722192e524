"""Gather and its gradient: rows by checked indices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.rules.checks import check, declined
from tests.compile.units import floats

from onward.engine import Session
from onward.errors import ShapeError
from onward.graph import Builder

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


def test_rows() -> None:
    check(lambda g: g.Gather(floats(g, "x", 3, 4), g.input("i", I64, (2, 5))), ["gather"])


def test_an_embeddings_gradient_adds_rows_that_come_again() -> None:
    check(
        lambda g: g.onward.GatherGrad(
            floats(g, "dy", 3, 4), g.input("i", I64, (3,)), g.const([9, 4], "int64")
        ),
        ["clear", "scatter_rows"],
        {"i": np.array([2, 2, 7])},
    )


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, F16, ir.DataType.UINT8, ir.DataType.BOOL, I64])
@pytest.mark.parametrize("kind", [I64, ir.DataType.INT32])
def test_any_axis_in_any_type(dtype: ir.DataType, kind: ir.DataType) -> None:
    check(
        lambda g: g.Gather(floats(g, "x", 3, 4, 5, dtype=dtype), g.input("i", kind, (2, 3)), axis=1),
        ["take"],
        {"i": np.array([[0, -1, 3], [-4, 2, 2]], kind.numpy())},
    )


def test_a_window_is_gathered_where_it_is() -> None:
    check(
        lambda g: g.Gather(
            g.Transpose(floats(g, "x", 3, 4, 5), perm=[2, 0, 1]), g.input("i", I64, ()), axis=2
        ),
        ["take"],
    )


@pytest.mark.parametrize("shape", [(7,), (3, 5)])
def test_elements_along_an_axis(shape: tuple[int, ...]) -> None:
    check(lambda g: g.GatherElements(floats(g, "x", *shape), g.input("i", I64, (2,) * len(shape))), ["take"])


def test_tuples() -> None:
    check(
        lambda g: g.GatherND(floats(g, "x", 2, 3, 4, 5), g.input("i", I64, (2, 6, 2)), batch_dims=1), ["take"]
    )
    check(lambda g: g.GatherND(floats(g, "x", 3, 4), g.input("i", I64, (2,))), ["take"])


def test_places_outside_are_refused_by_name() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 25}, name="places")
    g = Builder(graph)
    g.output(g.GatherElements(floats(g, "x", 3, 4), g.input("i", I64, (1, 4)), axis=0), "y")
    with Session(ir.Model(graph, ir_version=13), engine="compiled") as session:
        for wrong in (3, -4):
            given = np.array([[0, 1, wrong, 0]])
            with pytest.raises(ShapeError, match="GatherElements"):
                session.run({"x": np.zeros((3, 4), np.float32), "i": given})


def test_strings_and_other_indices_are_declined() -> None:
    declined(
        lambda g: g.GatherND(floats(g, "x", 3, 4, dtype=ir.DataType.COMPLEX128), g.input("i", I64, (2, 1))),
        "elements of complex128",
    )
