from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN


@op("QuickGelu", domain=DOMAIN, since=1)
class QuickGelu(Op):
    """x · sigmoid(alpha · x)."""

    alpha: float = 1.702

    def canonical(
        self,
        g: Builder,
        X: ir.Value,
    ) -> ir.Value:
        return g.Mul(X, g.Sigmoid(g.Mul(X, self.alpha)))
