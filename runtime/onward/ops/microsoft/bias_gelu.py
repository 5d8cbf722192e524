from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN


@op("BiasGelu", domain=DOMAIN, since=1)
class BiasGelu(Op):
    """Gelu of A + B, with the error function."""

    weight_operands = ("B",)

    def canonical(
        self,
        g: Builder,
        A: ir.Value,
        B: ir.Value,
    ) -> ir.Value:
        return g.Gelu(g.Add(A, B))
