from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import dequantize, quantize


@op("QLinearMul", domain=DOMAIN, since=1)
class QLinearMul(Op):
    """C = A · B on quantised tensors, which broadcast."""

    def canonical(
        self,
        g: Builder,
        A: ir.Value,
        A_scale: ir.Value,
        A_zero_point: ir.Value | None,
        B: ir.Value,
        B_scale: ir.Value,
        B_zero_point: ir.Value | None,
        C_scale: ir.Value,
        C_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        y = g.Mul(dequantize(g, A, A_scale, A_zero_point), dequantize(g, B, B_scale, B_zero_point))
        return quantize(g, y, C_scale, C_zero_point, A)
