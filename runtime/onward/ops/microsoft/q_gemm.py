from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN


@op("QGemm", domain=DOMAIN, since=1)
class QGemm(Op):
    """Gemm of quantised A and B; C is int32 of scale alpha · a_scale · b_scale.

    Without y_scale Y is float32.
    """

    alpha: float = 1.0
    transA: int = 0
    transB: int = 0

    def canonical(
        self,
        g: Builder,
        A: ir.Value,
        a_scale: ir.Value,
        a_zero_point: ir.Value | None,
        B: ir.Value,
        b_scale: ir.Value,
        b_zero_point: ir.Value | None,
        C: ir.Value | None = None,
        y_scale: ir.Value | None = None,
        y_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        left = g.Transpose(A, perm=[1, 0]) if self.transA else A
        right = g.Transpose(B, perm=[1, 0]) if self.transB else B
        total = g.MatMulInteger(left, right, a_zero_point, b_zero_point)
        if C is not None:
            total = g.Add(total, C)
        scale = g.Mul(a_scale, b_scale)
        if self.alpha != 1:
            scale = g.Mul(scale, self.alpha)
        y = g.Mul(g.Cast(total, to=int(ir.DataType.FLOAT)), scale)
        return y if y_scale is None else g.QuantizeLinear(y, y_scale, y_zero_point)
