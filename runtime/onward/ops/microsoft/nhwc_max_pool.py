from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, op
from onward.ops._pooling import Pooling
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import channels_first, channels_last


@op("NhwcMaxPool", domain=DOMAIN, since=1)
class NhwcMaxPool(Pooling):
    """MaxPool of [N, *, C]."""

    def canonical(
        self,
        g: Builder,
        x: ir.Value,
    ) -> ir.Value:
        rank = len(self.kernel_shape) + 2
        y = g.MaxPool(
            channels_first(g, x, rank),
            **self.attributes(),
        )
        return channels_last(g, y, rank)
