from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._norms import rms_normalized


@op("SkipSimplifiedLayerNormalization", domain=DOMAIN, since=1)
class SkipSimplifiedLayerNormalization(Op):
    """SimplifiedLayerNormalization of input + skip + bias; the sum is the fourth output."""

    weight_operands = ("gamma", "bias")

    epsilon: float = 1e-12

    def canonical(
        self,
        g: Builder,
        input: ir.Value,
        skip: ir.Value,
        gamma: ir.Value,
        bias: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        total = g.Add(input, skip)
        total = total if bias is None else g.Add(total, bias)
        y, inverse = rms_normalized(g, total, gamma, -1, self.epsilon)
        return y, None, inverse, total
