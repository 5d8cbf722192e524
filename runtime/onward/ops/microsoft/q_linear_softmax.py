from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, op
from onward.ops._shape import over_trailing_axes
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import QuantizedUnary


@op("QLinearSoftmax", domain=DOMAIN, since=1)
class QLinearSoftmax(QuantizedUnary):
    """Softmax on quantised tensors; before `opset` 13 over all axes from `axis` on."""

    axis: int = -1
    opset: int

    def of_numbers(self, g: Builder, x: ir.Value) -> ir.Value:
        if self.opset >= 13:
            return g.Softmax(x, axis=self.axis)
        return over_trailing_axes(g, "Softmax", x, self.axis)
