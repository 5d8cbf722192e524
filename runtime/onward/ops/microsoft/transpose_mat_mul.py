from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft.fused_mat_mul import FusedMatMul


@op("TransposeMatMul", domain=DOMAIN, since=1)
class TransposeMatMul(Op):
    """The older name of FusedMatMul."""

    weight_operands = ("A", "B")

    alpha: float = 1.0
    transA: int = 0
    transB: int = 0

    def canonical(
        self,
        g: Builder,
        A: ir.Value,
        B: ir.Value,
    ) -> ir.Value:
        return FusedMatMul(alpha=self.alpha, transA=self.transA, transB=self.transB).canonical(g, A, B)
