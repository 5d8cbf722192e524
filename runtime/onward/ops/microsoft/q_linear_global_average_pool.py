from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import QuantizedUnary, channels_first, channels_last


@op("QLinearGlobalAveragePool", domain=DOMAIN, since=1)
class QLinearGlobalAveragePool(QuantizedUnary):
    """GlobalAveragePool on quantised tensors."""

    channels_last: int = 0

    def of_numbers(self, g: Builder, x: ir.Value) -> ir.Value:
        y = g.GlobalAveragePool(channels_first(g, x) if self.channels_last else x)
        return channels_last(g, y) if self.channels_last else y
