from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN


@op("QuantizeLinear", domain=DOMAIN, since=1)
class QuantizeLinear(Op):
    """As the standard's."""

    axis: int = 1

    def canonical(
        self,
        g: Builder,
        x: ir.Value,
        y_scale: ir.Value,
        y_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        return g.QuantizeLinear(x, y_scale, y_zero_point, axis=self.axis)
