from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft.attention import Attention


@op("QAttention", domain=DOMAIN, since=1)
class QAttention(Op):
    """Attention whose input and weights are quantised."""

    weight_operands = ("bias",)

    do_rotary: int = 0
    mask_filter_value: float = -10000.0
    num_heads: int
    past_present_share_buffer: int = 0
    scale: float | None = None
    unidirectional: int = 0

    def canonical(
        self,
        g: Builder,
        input: ir.Value,
        weight: ir.Value,
        bias: ir.Value,
        input_scale: ir.Value,
        weight_scale: ir.Value,
        mask_index: ir.Value | None = None,
        input_zero_point: ir.Value | None = None,
        weight_zero_point: ir.Value | None = None,
        past: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        attention = Attention(
            output_count=self.output_count,
            do_rotary=self.do_rotary,
            mask_filter_value=self.mask_filter_value,
            num_heads=self.num_heads,
            past_present_share_buffer=self.past_present_share_buffer,
            scale=self.scale,
            unidirectional=self.unidirectional,
        )
        x = g.DequantizeLinear(input, input_scale, input_zero_point)
        w = g.DequantizeLinear(weight, weight_scale, weight_zero_point, axis=1)
        return attention.canonical(g, x, w, bias, mask_index, past)
