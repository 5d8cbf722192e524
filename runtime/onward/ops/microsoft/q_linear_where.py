from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import dequantize, quantize


@op("QLinearWhere", domain=DOMAIN, since=1)
class QLinearWhere(Op):
    """Z = X where condition, else Y, on quantised tensors."""

    def canonical(
        self,
        g: Builder,
        condition: ir.Value,
        X: ir.Value,
        x_scale: ir.Value,
        x_zero_point: ir.Value | None,
        Y: ir.Value,
        y_scale: ir.Value,
        y_zero_point: ir.Value | None,
        z_scale: ir.Value,
        z_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        x, y = dequantize(g, X, x_scale, x_zero_point), dequantize(g, Y, y_scale, y_zero_point)
        return quantize(g, g.Where(condition, x, y), z_scale, z_zero_point, X)
