from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, Op, dims_of, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._attention import attend, blocked, in_heads, rank_known


@op("Attention", domain=DOMAIN, since=1)
class Attention(Op):
    """Self-attention of input [batch, length, hidden] with one product for queries, keys and values.

    `past` and `present` are [2, batch, heads, length, size]. A mask keeps what is not 0: [batch, keys],
    [batch, queries, keys], or the number of keys to keep, [batch]. Rotary embeddings are refused."""

    weight_operands = ("weights", "bias")

    do_rotary: int = 0
    mask_filter_value: float = -10000.0
    num_heads: int
    past_present_share_buffer: int = 0
    qkv_hidden_sizes: tuple[int, ...] | None = None
    rotary_embedding_dim: int = 0
    scale: float | None = None
    unidirectional: int = 0

    def canonical(
        self,
        g: Builder,
        input: ir.Value,
        weights: ir.Value,
        bias: ir.Value | None = None,
        mask_index: ir.Value | None = None,
        past: ir.Value | None = None,
        attention_bias: ir.Value | None = None,
        past_sequence_length: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        if self.do_rotary or past_sequence_length is not None or self.past_present_share_buffer:
            raise UnsupportedError(
                "rotary embeddings and buffers shared by past and present are not supported"
            )
        projected = g.MatMul(input, weights)
        projected = projected if bias is None else g.Add(projected, bias)
        sizes = self.qkv_hidden_sizes or self._thirds(weights)
        q, k, v = (
            in_heads(g, x, self.num_heads)
            for x in g.emit("Split", projected, list(sizes), outputs=3, axis=-1)
        )
        present = None
        if past is not None:
            k = g.Concat(g.Gather(past, g.const(0, ir.DataType.INT64), axis=0), k, axis=2)
            v = g.Concat(g.Gather(past, g.const(1, ir.DataType.INT64), axis=0), v, axis=2)
        if self.output_count > 1:
            present = g.Concat(g.Unsqueeze(k, [0]), g.Unsqueeze(v, [0]), axis=0)
        added = [] if attention_bias is None else [attention_bias]
        if mask_index is not None:
            added.append(blocked(g, self._kept(g, mask_index, input, k), input, self.mask_filter_value))
        scale = self.scale or None
        return attend(g, q, k, v, added, scale=scale, causal=bool(self.unidirectional)), present

    def _thirds(self, weights: ir.Value) -> tuple[int, ...]:
        dims = dims_of(weights)
        width = dims[1] if dims is not None else None
        if not isinstance(width, int) or width % 3:
            raise UnsupportedError("the width of its weights is not known, or not three times another")
        return (width // 3,) * 3

    def _kept(self, g: Builder, mask: ir.Value, input: ir.Value, k: ir.Value) -> ir.Value:
        """What the mask keeps, in a form that broadcasts to [batch, heads, queries, keys]."""
        rank = rank_known(mask)
        if rank == 2:
            return g.Unsqueeze(mask, [1, 2])
        if rank == 3:
            return g.Unsqueeze(mask, [1])
        mask_dims, input_dims = dims_of(mask), dims_of(input)
        if rank != 1 or not mask_dims or not input_dims or mask_dims[0] != input_dims[0]:
            raise UnsupportedError(
                f"a mask of shape {mask_dims} is not supported; it is [batch, keys], [batch, queries, keys] "
                "or [batch]"
            )
        zero, one = g.const(0, ir.DataType.INT64), g.const(1, ir.DataType.INT64)
        positions = g.Range(zero, g.Squeeze(g.dim(k, 2), [0]), one)
        lengths = g.Unsqueeze(g.Cast(mask, to=int(ir.DataType.INT64)), [1, 2, 3])
        return g.Less(positions, lengths)
