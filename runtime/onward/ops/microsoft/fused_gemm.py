from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._activation import activated


@op("FusedGemm", domain=DOMAIN, since=1)
class FusedGemm(Op):
    """activation(Gemm(A, B, C))."""

    weight_operands = ("A", "B", "C")

    activation: str = ""
    activation_alpha: float | None = None
    activation_beta: float | None = None
    activation_gamma: float | None = None
    alpha: float = 1.0
    beta: float = 1.0
    transA: int = 0
    transB: int = 0

    def canonical(
        self,
        g: Builder,
        A: ir.Value,
        B: ir.Value,
        C: ir.Value | None = None,
    ) -> ir.Value:
        y = g.Gemm(A, B, C, alpha=self.alpha, beta=self.beta, transA=self.transA, transB=self.transB)
        given = (self.activation_alpha, self.activation_beta, self.activation_gamma)
        return activated(g, y, self.activation, [p for p in given if p is not None])
