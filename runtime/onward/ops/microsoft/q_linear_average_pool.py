from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import channels_first, channels_last, dequantize, quantize


@op("QLinearAveragePool", domain=DOMAIN, since=1)
class QLinearAveragePool(Op):
    """AveragePool on quantised tensors."""

    auto_pad: str = "NOTSET"
    ceil_mode: int = 0
    channels_last: int = 0
    count_include_pad: int = 0
    kernel_shape: tuple[int, ...]
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def canonical(
        self,
        g: Builder,
        X: ir.Value,
        X_scale: ir.Value,
        X_zero_point: ir.Value | None,
        Y_scale: ir.Value,
        Y_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        x = dequantize(g, X, X_scale, X_zero_point)
        rank = len(self.kernel_shape) + 2
        y = g.AveragePool(
            channels_first(g, x, rank) if self.channels_last else x,
            auto_pad=self.auto_pad,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
            kernel_shape=self.kernel_shape,
            pads=self.pads,
            strides=self.strides,
        )
        y = channels_last(g, y, rank) if self.channels_last else y
        return quantize(g, y, Y_scale, Y_zero_point, X)
