from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, Op, dims_of, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._attention import attend, blocked, in_heads, rank_known


@op("MultiHeadAttention", domain=DOMAIN, since=1)
class MultiHeadAttention(Op):
    """Attention of query, key and value that are projected already.

    query is [batch, length, heads · size], or has key and value in it, [batch, length, heads, 3, size]; key
    may have value in it, [batch, length, heads, 2, size]; both may be in heads, [batch, heads, length, size].
    A padding mask keeps what is not 0: [batch, keys], [batch, queries, keys], or the number of keys, [batch].
    """

    weight_operands = ("bias",)

    mask_filter_value: float = -10000.0
    num_heads: int
    scale: float | None = None
    unidirectional: int = 0

    def canonical(
        self,
        g: Builder,
        query: ir.Value,
        key: ir.Value | None = None,
        value: ir.Value | None = None,
        bias: ir.Value | None = None,
        key_padding_mask: ir.Value | None = None,
        attention_bias: ir.Value | None = None,
        past_key: ir.Value | None = None,
        past_value: ir.Value | None = None,
        past_sequence_length: ir.Value | None = None,
        cache_indirection: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        if past_sequence_length is not None or cache_indirection is not None or self.output_count > 3:
            raise UnsupportedError("shared buffers, beams and an output of scores are not supported")
        q, k, v = self._in_heads(g, query, key, value, bias)
        if past_key is not None and past_value is not None:
            k, v = g.Concat(past_key, k, axis=2), g.Concat(past_value, v, axis=2)
        added = [] if attention_bias is None else [attention_bias]
        if key_padding_mask is not None:
            added.append(blocked(g, self._kept(g, key_padding_mask, k), query, self.mask_filter_value))
        scale = self.scale or None
        y = attend(g, q, k, v, added, scale=scale, causal=bool(self.unidirectional))
        return y, k, v

    def _in_heads(
        self,
        g: Builder,
        query: ir.Value,
        key: ir.Value | None,
        value: ir.Value | None,
        bias: ir.Value | None,
    ) -> tuple[ir.Value, ...]:
        """Queries, keys and values [batch, heads, length, size], with the bias that they share."""
        if rank_known(query) == 5:
            parts = list(_unpacked(g, query, 3))
        elif key is None:
            raise UnsupportedError("it has no key")
        elif rank_known(key) == 5:
            parts = [query, *_unpacked(g, key, 2)]
        elif value is None:
            raise UnsupportedError("it has no value")
        else:
            parts = [query, key, value]
        if bias is not None:
            widths = [dims[-1] if (dims := dims_of(x)) and len(dims) == 3 else None for x in parts]
            heads_only = [i for i, x in enumerate(parts) if rank_known(x) == 4]
            if heads_only:
                size = [dims_of(parts[i]) for i in heads_only]
                for i, dims in zip(heads_only, size, strict=True):
                    last = dims[3] if dims else None
                    widths[i] = last * self.num_heads if isinstance(last, int) else None
            if not all(isinstance(w, int) for w in widths):
                raise UnsupportedError("it has a bias, and the widths of query, key and value are not known")
            shares = g.emit("Split", bias, [int(w or 0) for w in widths], outputs=3, axis=0)
            parts = [
                g.Add(x, b) if rank_known(x) == 3 else g.Add(x, g.Reshape(b, [self.num_heads, 1, -1]))
                for x, b in zip(parts, shares, strict=True)
            ]
        return tuple(in_heads(g, x, self.num_heads) if rank_known(x) == 3 else x for x in parts)

    def _kept(self, g: Builder, mask: ir.Value, k: ir.Value) -> ir.Value:
        rank = rank_known(mask)
        if rank == 2:
            return g.Unsqueeze(mask, [1, 2])
        if rank == 3:
            return g.Unsqueeze(mask, [1])
        mask_dims, k_dims = dims_of(mask), dims_of(k)
        if rank != 1 or not mask_dims or not k_dims or mask_dims[0] != k_dims[0]:
            raise UnsupportedError(
                f"a padding mask of shape {mask_dims} is not supported; it is [batch, keys], "
                "[batch, queries, keys] or [batch]"
            )
        zero, one = g.const(0, ir.DataType.INT64), g.const(1, ir.DataType.INT64)
        positions = g.Range(zero, g.Squeeze(g.dim(k, 2), [0]), one)
        return g.Less(positions, g.Unsqueeze(g.Cast(mask, to=int(ir.DataType.INT64)), [1, 2, 3]))


def _unpacked(g: Builder, x: ir.Value, count: int) -> tuple[ir.Value, ...]:
    """[batch, length, heads, count, size] as so many of [batch, heads, length, size]."""
    parts = g.emit("Split", x, [1] * count, outputs=count, axis=3)
    return tuple(g.Transpose(g.Squeeze(part, [3]), perm=[0, 2, 1, 3]) for part in parts)
