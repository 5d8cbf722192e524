from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import QuantizedUnary


@op("QLinearSigmoid", domain=DOMAIN, since=1)
class QLinearSigmoid(QuantizedUnary):
    """Y = sigmoid(X) on quantised tensors."""

    def of_numbers(self, g: Builder, x: ir.Value) -> ir.Value:
        return g.Sigmoid(x)
