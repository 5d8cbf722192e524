"""Softmax cross-entropy and its gradient."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.compile.rules.checks import check
from tests.compile.units import floats, kinds, lowered_of

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
