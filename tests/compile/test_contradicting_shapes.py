"""Shapes that contradict each other: a plan refuses what the interpreter does, reads past no end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.ops.cases import CASES
from tests.ops.harness import Case, model_of

from onward.engine import Session
from onward.errors import OnwardError, ShapeError
from onward.graph import Array
from onward.model import from_bytes

_ENGINES: tuple[Literal["interpreter", "compiled"], ...] = ("interpreter", "compiled")

_LABELS = {"SoftmaxCrossEntropyGrad": "a class fewer leaves labels without a class, as the forward run says"}


def _contradicting(case: Case) -> Iterator[Case]:
    """The case with one extent of one float operand a step longer or shorter."""
    for i, x in enumerate(case.operands()):
        if x is None or x.dtype != np.float32:
            continue
        for axis, extent in enumerate(x.shape):
            for other in (extent - 1, extent + 1):
                if other >= 1:
                    shape = (*x.shape[:axis], other, *x.shape[axis + 1 :])
                    inputs = [*case.inputs[:i], np.resize(x, shape).astype(np.float32), *case.inputs[i + 1 :]]
                    name = f"{case.id} with {other} at axis {axis} of operand {i}"
                    yield dataclasses.replace(case, inputs=inputs, batch=(), name=name)


def _run(case: Case, engine: Literal["interpreter", "compiled"]) -> dict[str, Array] | OnwardError:
    try:
        model, operands = model_of(case), case.operands()
        feeds = {str(v.name): operands[int(str(v.name)[1:])] for v in model.graph.inputs}
        with Session(model, engine=engine) as session:
            return session.run({name: x for name, x in feeds.items() if x is not None})
    except OnwardError as error:
        return error


def _compare(case: Case) -> None:
    for other in _contradicting(case):
        slow, fast = (_run(other, engine) for engine in _ENGINES)
        if isinstance(slow, OnwardError) or isinstance(fast, OnwardError):
            assert isinstance(slow, OnwardError), f"{other.id}: only the plan refuses: {fast}"
            assert isinstance(fast, OnwardError), f"{other.id}: only the interpreter refuses: {slow}"
            continue
        for name, want in slow.items():
            np.testing.assert_allclose(
                fast[name], want, rtol=case.rtol, atol=10 * case.atol, err_msg=f"{other.id} {name}"
            )


_FIRST = list({case.op_type: case for case in reversed(CASES) if case.op_type not in _LABELS}.values())


@pytest.mark.parametrize("case", _FIRST, ids=lambda case: case.op_type)
def test_engines_agree(case: Case) -> None:
    _compare(case)


def test_convolution_names_the_node_and_what_does_not_fit() -> None:
    weights = numpy_helper.from_array(np.ones((2, 4, 1, 1), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="n", kernel_shape=[1, 1])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 3, 5, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 2, 5, 4])
    graph = helper.make_graph([node], "one", [x], [y], [weights])
    model = from_bytes(
        onnx.helper.make_model(
            graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]
        ).SerializeToString()
    )
    for engine in _ENGINES:
        with (
            pytest.raises(
                ShapeError, match=r"'n', operator Conv.* \[2, 4, 1, 1\] do(es)? not fit 3 channels"
            ),
            Session(model, engine=engine) as session,
        ):
            session.run({"x": np.ones((5, 3, 5, 4), np.float32)})


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceLogSumExp", "ReduceMax"])
def test_axes_may_be_a_scalar(op_type: str) -> None:
    """The standard wants a vector; onnxruntime and the interpreter take one number for one axis."""
    case = Case(op_type, [(2, 3, 4), 1], {"keepdims": 0})
    slow, fast = (_run(case, engine) for engine in _ENGINES)
    assert not isinstance(slow, OnwardError), slow
    assert not isinstance(fast, OnwardError), fast
    assert slow["y0"].shape == (2, 4)
    np.testing.assert_allclose(fast["y0"], slow["y0"], rtol=1e-5)
