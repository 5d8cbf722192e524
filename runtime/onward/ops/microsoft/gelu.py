from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN


@op("Gelu", domain=DOMAIN, since=1)
class Gelu(Op):
    """x · Φ(x), with the error function."""

    def canonical(
        self,
        g: Builder,
        X: ir.Value,
    ) -> ir.Value:
        return g.Gelu(X)
