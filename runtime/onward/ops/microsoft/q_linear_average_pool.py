from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import QuantizedUnary, channels_first, channels_last


@op("QLinearAveragePool", domain=DOMAIN, since=1)
class QLinearAveragePool(QuantizedUnary):
    """AveragePool on quantised tensors."""

    auto_pad: str = "NOTSET"
    ceil_mode: int = 0
    channels_last: int = 0
    count_include_pad: int = 0
    kernel_shape: tuple[int, ...]
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def of_numbers(self, g: Builder, x: ir.Value) -> ir.Value:
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
        return channels_last(g, y, rank) if self.channels_last else y
