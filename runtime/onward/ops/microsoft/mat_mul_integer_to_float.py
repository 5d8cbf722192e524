from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN


@op("MatMulIntegerToFloat", domain=DOMAIN, since=1)
class MatMulIntegerToFloat(Op):
    """Y = (A − a_zero_point) · (B − b_zero_point) · a_scale · b_scale + bias."""

    weight_operands = ("bias",)

    def canonical(
        self,
        g: Builder,
        A: ir.Value,
        B: ir.Value,
        a_scale: ir.Value,
        b_scale: ir.Value,
        a_zero_point: ir.Value | None = None,
        b_zero_point: ir.Value | None = None,
        bias: ir.Value | None = None,
    ) -> ir.Value:
        total = g.Cast(
            g.MatMulInteger(A, B, a_zero_point, b_zero_point), to=int(a_scale.dtype or ir.DataType.FLOAT)
        )
        y = g.Mul(total, g.Mul(a_scale, b_scale))
        return y if bias is None else g.Add(y, bias)
