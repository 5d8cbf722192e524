from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN


@op("LayerNormalization", domain=DOMAIN, since=1)
class LayerNormalization(Op):
    """As the standard's of opset 17, in files of older opsets."""

    weight_operands = ("scale", "B")

    axis: int = -1
    epsilon: float = 1e-5
    stash_type: int = 1

    def canonical(
        self,
        g: Builder,
        X: ir.Value,
        scale: ir.Value,
        B: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        if self.output_count == 1:
            return (g.LayerNormalization(X, scale, B, axis=self.axis, epsilon=self.epsilon),)
        return g.emit("LayerNormalization", X, scale, B, outputs=3, axis=self.axis, epsilon=self.epsilon)
