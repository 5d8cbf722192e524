"""Softmax cross-entropy and its gradient."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import planned
from tests.compile.rules.checks import check
from tests.compile.units import floats, kinds, lowered_of

from onward.errors import ShapeError
from onward.graph import Builder

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_of_rows(reduction: str) -> None:
    def build(g: Builder) -> list[ir.Value]:
        scores, labels = floats(g, "x", 6, 5), g.input("t", I64, (6,))
        return list(
            g.emit(
                "SoftmaxCrossEntropy",
                scores,
                labels,
                domain="ai.onward",
                outputs=2,
                reduction=reduction,
                label_smoothing=0.1,
            )
        )

    found = kinds(lowered_of(build))
    assert "numpy" not in found
    check(build, found)


def test_labels_are_checked_where_the_gradient_is_alone() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="gradient")
    g = Builder(graph)
    dloss, log_prob = floats(g, "dy", 1), floats(g, "x", 3, 5)
    labels = g.input("t", I64, (3,))
    g.output(g.onward.SoftmaxCrossEntropyGrad(g.Squeeze(dloss, [0]), log_prob, labels), "dx")
    inputs = {"dy": np.ones(1, np.float32), "x": np.zeros((3, 5), np.float32), "t": np.array([0, 4, 2])}
    plan = planned(ir.Model(graph, ir_version=10), inputs)
    assert plan.run(inputs)["dx"].shape == (3, 5)
    for wrong in (5, -1):
        with pytest.raises(ShapeError, match="label"):
            plan.run({**inputs, "t": np.array([0, wrong, 2])})
