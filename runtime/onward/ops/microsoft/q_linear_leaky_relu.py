from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import QuantizedUnary


@op("QLinearLeakyRelu", domain=DOMAIN, since=1)
class QLinearLeakyRelu(QuantizedUnary):
    """Y = X where X >= 0, else alpha · X, on quantised tensors."""

    alpha: float = 0.01

    def of_numbers(self, g: Builder, x: ir.Value) -> ir.Value:
        return g.LeakyRelu(x, alpha=self.alpha)
