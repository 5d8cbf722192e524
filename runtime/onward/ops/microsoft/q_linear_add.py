from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import QuantizedBinary


@op("QLinearAdd", domain=DOMAIN, since=1)
class QLinearAdd(QuantizedBinary):
    """C = A + B on quantised tensors, which broadcast."""

    def of_numbers(self, g: Builder, a: ir.Value, b: ir.Value) -> ir.Value:
        return g.Add(a, b)
