from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._norms import rms_normalized


@op("SimplifiedLayerNormalization", domain=DOMAIN, since=1)
class SimplifiedLayerNormalization(Op):
    """x / sqrt(mean(x²) + epsilon) · scale over the axes from `axis` on."""

    weight_operands = ("scale",)

    axis: int = -1
    epsilon: float = 1e-5
    stash_type: int = 1

    def canonical(
        self,
        g: Builder,
        X: ir.Value,
        scale: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        return rms_normalized(g, X, scale, self.axis, self.epsilon)
