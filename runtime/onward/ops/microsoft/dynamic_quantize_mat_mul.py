from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN


@op("DynamicQuantizeMatMul", domain=DOMAIN, since=1)
class DynamicQuantizeMatMul(Op):
    """Y = A · (B − b_zero_point) · b_scale + bias, A quantised by its own range."""

    weight_operands = ("bias",)

    def canonical(
        self,
        g: Builder,
        A: ir.Value,
        B: ir.Value,
        b_scale: ir.Value,
        b_zero_point: ir.Value | None = None,
        bias: ir.Value | None = None,
    ) -> ir.Value:
        a, scale, zero = g.emit("DynamicQuantizeLinear", A, outputs=3)
        total = g.Cast(g.MatMulInteger(a, B, zero, b_zero_point), to=int(ir.DataType.FLOAT))
        y = g.Mul(total, g.Mul(scale, b_scale))
        return y if bias is None else g.Add(y, bias)
