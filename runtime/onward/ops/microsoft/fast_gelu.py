from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._activation import tanh_gelu


@op("FastGelu", domain=DOMAIN, since=1)
class FastGelu(Op):
    """Gelu of X + bias, approximated by a hyperbolic tangent."""

    weight_operands = ("bias",)

    def canonical(
        self,
        g: Builder,
        X: ir.Value,
        bias: ir.Value | None = None,
    ) -> ir.Value:
        return tanh_gelu(g, X if bias is None else g.Add(X, bias))
