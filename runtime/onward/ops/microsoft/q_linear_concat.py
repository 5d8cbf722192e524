from __future__ import annotations

import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import dequantize, quantize


@op("QLinearConcat", domain=DOMAIN, since=1)
class QLinearConcat(Op):
    """Concat of quantised tensors, each given as tensor, scale and zero point."""

    axis: int

    def canonical(
        self,
        g: Builder,
        Y_scale: ir.Value,
        Y_zero_point: ir.Value,
        *inputs: ir.Value,
    ) -> ir.Value:
        if not inputs or len(inputs) % 3:
            raise InvalidModelError("its tensors come with a scale and a zero point each")
        parts = [dequantize(g, inputs[i], inputs[i + 1], inputs[i + 2]) for i in range(0, len(inputs), 3)]
        return quantize(g, g.Concat(*parts, axis=self.axis), Y_scale, Y_zero_point, inputs[0])
