from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN


@op("DequantizeLinear", domain=DOMAIN, since=1)
class DequantizeLinear(Op):
    """As the standard's."""

    axis: int = 1

    def canonical(
        self,
        g: Builder,
        x: ir.Value,
        x_scale: ir.Value,
        x_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        return g.DequantizeLinear(x, x_scale, x_zero_point, axis=self.axis)
