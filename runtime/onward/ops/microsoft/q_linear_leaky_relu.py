from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import dequantize, quantize


@op("QLinearLeakyRelu", domain=DOMAIN, since=1)
class QLinearLeakyRelu(Op):
    """Y = X where X >= 0, else alpha · X, on quantised tensors."""

    alpha: float = 0.01

    def canonical(
        self,
        g: Builder,
        X: ir.Value,
        X_scale: ir.Value,
        X_zero_point: ir.Value | None,
        Y_scale: ir.Value,
        Y_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        y = g.LeakyRelu(dequantize(g, X, X_scale, X_zero_point), alpha=self.alpha)
        return quantize(g, y, Y_scale, Y_zero_point, X)
