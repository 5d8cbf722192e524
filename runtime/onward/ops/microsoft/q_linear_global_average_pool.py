from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import channels_first, channels_last, dequantize, quantize


@op("QLinearGlobalAveragePool", domain=DOMAIN, since=1)
class QLinearGlobalAveragePool(Op):
    """GlobalAveragePool on quantised tensors."""

    channels_last: int = 0

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
        y = g.GlobalAveragePool(channels_first(g, x) if self.channels_last else x)
        y = channels_last(g, y) if self.channels_last else y
        return quantize(g, y, Y_scale, Y_zero_point, X)
