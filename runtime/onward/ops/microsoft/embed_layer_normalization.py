from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._rotary import positions


@op("EmbedLayerNormalization", domain=DOMAIN, since=1)
class EmbedLayerNormalization(Op):
    """LayerNormalization of word, position and segment embeddings of ids [batch, length].

    The second output is the number of positions that the mask keeps, the third the sum of the embeddings."""

    weight_operands = ("word_embedding", "position_embedding", "segment_embedding", "gamma", "beta")

    epsilon: float = 1e-12
    mask_index_type: int = 0

    def canonical(
        self,
        g: Builder,
        input_ids: ir.Value,
        segment_ids: ir.Value | None,
        word_embedding: ir.Value,
        position_embedding: ir.Value,
        segment_embedding: ir.Value | None,
        gamma: ir.Value,
        beta: ir.Value,
        mask: ir.Value | None = None,
        position_ids: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        words = g.Gather(word_embedding, input_ids, axis=0)
        if position_ids is None:
            position_ids = positions(g, input_ids, 1)
        total = g.Add(words, g.Gather(position_embedding, position_ids, axis=0))
        if segment_ids is not None and segment_embedding is not None:
            total = g.Add(total, g.Gather(segment_embedding, segment_ids, axis=0))
        y = g.LayerNormalization(total, gamma, beta, axis=-1, epsilon=self.epsilon)
        return y, None if self.output_count < 2 else kept_positions(g, input_ids, mask), total


def kept_positions(g: Builder, input_ids: ir.Value, mask: ir.Value | None) -> ir.Value:
    """How many positions of each sample a mask keeps, int32 [batch]; 0 without one."""
    if mask is not None:
        return g.ReduceSum(mask, [1], keepdims=0)
    zeros = g.Sub(input_ids, input_ids)
    return g.ReduceSum(g.Cast(zeros, to=int(ir.DataType.INT32)), [1], keepdims=0)
