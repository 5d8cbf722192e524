from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops._shape import over_trailing_axes
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import dequantize, quantize


@op("QLinearSoftmax", domain=DOMAIN, since=1)
class QLinearSoftmax(Op):
    """Softmax on quantised tensors; before `opset` 13 over all axes from `axis` on."""

    axis: int = -1
    opset: int

    def canonical(
        self,
        g: Builder,
        X: ir.Value,
        X_scale: ir.Value,
        X_zero_point: ir.Value | None,
        Y_scale: ir.Value,
        Y_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        x = dequantize(g, X, X_scale, X_zero_point)
        y = (
            g.Softmax(x, axis=self.axis)
            if self.opset >= 13
            else over_trailing_axes(g, "Softmax", x, self.axis)
        )
        return quantize(g, y, Y_scale, Y_zero_point, X)
