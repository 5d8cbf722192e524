from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN


@op("SkipLayerNormalization", domain=DOMAIN, since=1)
class SkipLayerNormalization(Op):
    """LayerNormalization of input + skip + bias over the last axis; the sum is the fourth output."""

    weight_operands = ("gamma", "beta", "bias")

    epsilon: float = 1e-12

    def canonical(
        self,
        g: Builder,
        input: ir.Value,
        skip: ir.Value,
        gamma: ir.Value,
        beta: ir.Value | None = None,
        bias: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        total = g.Add(input, skip)
        total = total if bias is None else g.Add(total, bias)
        if self.output_count in (2, 3):
            return g.emit("LayerNormalization", total, gamma, beta, outputs=3, axis=-1, epsilon=self.epsilon)
        return g.LayerNormalization(total, gamma, beta, axis=-1, epsilon=self.epsilon), None, None, total
