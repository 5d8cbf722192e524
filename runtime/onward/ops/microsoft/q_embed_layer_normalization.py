from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import dequantize
from onward.ops.microsoft._rotary import positions
from onward.ops.microsoft.embed_layer_normalization import kept_positions


@op("QEmbedLayerNormalization", domain=DOMAIN, since=1)
class QEmbedLayerNormalization(Op):
    """EmbedLayerNormalization of tables, gamma and beta in 8 bits: only rows that are taken become floats.

    The second output is the number of positions that the mask keeps.
    """

    epsilon: float = 1e-12

    def canonical(
        self,
        g: Builder,
        input_ids: ir.Value,
        segment_ids: ir.Value | None,
        word_embedding_quant: ir.Value,
        position_embedding_quant: ir.Value,
        segment_embedding: ir.Value | None,
        gamma_quant: ir.Value,
        beta_quant: ir.Value,
        mask: ir.Value | None,
        word_embedding_scale: ir.Value,
        position_embedding_scale: ir.Value,
        segment_embedding_scale: ir.Value | None,
        gamma_scale: ir.Value,
        beta_scale: ir.Value,
        word_embedding_zero_point: ir.Value,
        position_embedding_zero_point: ir.Value,
        segment_embedding_zero_point: ir.Value | None,
        gamma_zero_point: ir.Value,
        beta_zero_point: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        def rows(table: ir.Value, at: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> ir.Value:
            return dequantize(g, g.Gather(table, at, axis=0), scale, zero)

        words = rows(word_embedding_quant, input_ids, word_embedding_scale, word_embedding_zero_point)
        at = positions(g, input_ids, 1)
        places = rows(position_embedding_quant, at, position_embedding_scale, position_embedding_zero_point)
        total = g.Add(words, places)
        if segment_ids is not None and segment_embedding is not None:
            scale, zero = segment_embedding_scale, segment_embedding_zero_point
            total = g.Add(total, rows(segment_embedding, segment_ids, scale, zero))
        gamma = dequantize(g, gamma_quant, gamma_scale, gamma_zero_point)
        beta = dequantize(g, beta_quant, beta_scale, beta_zero_point)
        y = g.LayerNormalization(total, gamma, beta, axis=-1, epsilon=self.epsilon)
        return y, None if self.output_count < 2 else kept_positions(g, input_ids, mask)
