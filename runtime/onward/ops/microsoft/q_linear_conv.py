from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import channels_first, channels_last


@op("QLinearConv", domain=DOMAIN, since=1)
class QLinearConv(Op):
    """The standard's QLinearConv, on tensors whose channels may be last."""

    auto_pad: str = "NOTSET"
    channels_last: int = 0
    dilations: tuple[int, ...] | None = None
    group: int = 1
    kernel_shape: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

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
            auto_pad=self.auto_pad,
            dilations=self.dilations,
            group=self.group,
            kernel_shape=self.kernel_shape,
            pads=self.pads,
            strides=self.strides,
        )
        return channels_last(g, y) if self.channels_last else y
