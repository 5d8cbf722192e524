from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import channels_first, channels_last


@op("NhwcMaxPool", domain=DOMAIN, since=1)
class NhwcMaxPool(Op):
    """MaxPool of [N, *, C]."""

    auto_pad: str = "NOTSET"
    ceil_mode: int = 0
    dilations: tuple[int, ...] | None = None
    kernel_shape: tuple[int, ...]
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def canonical(
        self,
        g: Builder,
        x: ir.Value,
    ) -> ir.Value:
        rank = len(self.kernel_shape) + 2
        y = g.MaxPool(
            channels_first(g, x, rank),
            auto_pad=self.auto_pad,
            ceil_mode=self.ceil_mode,
            dilations=self.dilations,
            kernel_shape=self.kernel_shape,
            pads=self.pads,
            strides=self.strides,
        )
        return channels_last(g, y, rank)
