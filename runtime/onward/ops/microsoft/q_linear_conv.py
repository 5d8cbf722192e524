from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, attributes_of, op
from onward.ops._convolution import Convolving
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import channels_first, channels_last


@op("QLinearConv", domain=DOMAIN, since=1)
class QLinearConv(Convolving):
    """The standard's QLinearConv, on tensors whose channels may be last."""

    channels_last: int = 0

    def canonical(
        self,
        g: Builder,
        x: ir.Value,
        x_scale: ir.Value,
        x_zero_point: ir.Value,
        w: ir.Value,
        w_scale: ir.Value,
        w_zero_point: ir.Value,
        y_scale: ir.Value,
        y_zero_point: ir.Value,
        B: ir.Value | None = None,
    ) -> ir.Value:
        operands = (x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, B)
        y = g.QLinearConv(
            channels_first(g, x) if self.channels_last else x,
            *operands,
            **attributes_of(self, Convolving),
        )
        return channels_last(g, y) if self.channels_last else y
