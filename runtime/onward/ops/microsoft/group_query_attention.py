from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, Op, dims_of, dtype_of, numpy_dtype, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._attention import in_heads
from onward.ops.microsoft._norms import rms_normalized
from onward.ops.microsoft._rotary import positions, rotated


@op("GroupQueryAttention", domain=DOMAIN, since=1)
class GroupQueryAttention(Op):
    """Causal attention in which groups of query heads share a head of keys and values, with a cache of both.

    query is [batch, length, heads · size], or has keys and values behind the queries; the caches are
    [batch, key heads, positions, size]. seqlens_k + 1 positions of a sample are there with the new ones. The
    present cache has total_sequence_length positions, or as many as the past one if that is longer; those
    that nothing was written to are 0.
    """

    weight_operands = ("head_sink", "q_norm_weight", "k_norm_weight")

    causal: int = 1
    do_rotary: int = 0
    k_norm_epsilon: float | None = None
    k_quant_type: str = "NONE"
    kv_cache_bit_width: int = 0
    kv_num_heads: int
    local_window_size: int = -1
    num_heads: int
    q_norm_epsilon: float | None = None
    qk_norm_epsilon: float = 1e-6
    qk_output: int = 0
    rotary_interleaved: int = 0
    scale: float = 0.0
    sliding_window_cache: int = 0
    smooth_softmax: int = -1
    softcap: float = 0.0
    v_quant_type: str = "NONE"

    def canonical(
        self,
        g: Builder,
        query: ir.Value,
        key: ir.Value | None = None,
        value: ir.Value | None = None,
        past_key: ir.Value | None = None,
        past_value: ir.Value | None = None,
        seqlens_k: ir.Value | None = None,
        total_sequence_length: ir.Value | None = None,
        cos_cache: ir.Value | None = None,
        sin_cache: ir.Value | None = None,
        position_ids: ir.Value | None = None,
        attention_bias: ir.Value | None = None,
        head_sink: ir.Value | None = None,
        k_scale: ir.Value | None = None,
        v_scale: ir.Value | None = None,
        q_norm_weight: ir.Value | None = None,
        k_norm_weight: ir.Value | None = None,
        query_seqlens: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        quantized = self.kv_cache_bit_width or (self.k_quant_type, self.v_quant_type) != ("NONE", "NONE")
        if quantized or k_scale is not None or v_scale is not None:
            raise UnsupportedError("a quantised cache is not supported")
        if query_seqlens is not None or self.sliding_window_cache or self.output_count > 3:
            raise UnsupportedError(
                "query_seqlens, a cache of the window alone and an output of scores are not supported"
            )
        if (past_key is None) != (past_value is None) or (q_norm_weight is None) != (k_norm_weight is None):
            raise UnsupportedError(
                "past_key and past_value, and q_norm_weight and k_norm_weight, come in pairs"
            )
        if seqlens_k is None or total_sequence_length is None:
            raise UnsupportedError("it needs seqlens_k and total_sequence_length")
        q, k, v = self._in_heads(g, query, key, value)
        if q_norm_weight is not None and k_norm_weight is not None:
            of_q, of_k = (
                self.qk_norm_epsilon if own is None else own
                for own in (self.q_norm_epsilon, self.k_norm_epsilon)
            )
            q = rms_normalized(g, q, q_norm_weight, -1, of_q)[0]
            k = rms_normalized(g, k, k_norm_weight, -1, of_k)[0]
        before = None
        if past_key is not None and past_value is not None:
            before = self._before(g, seqlens_k, q)
        at = self._positions(g, q, before)
        if self.do_rotary:
            if cos_cache is None or sin_cache is None:
                raise UnsupportedError("do_rotary needs cos_cache and sin_cache")
            turn = at if position_ids is None else position_ids
            q, k = (
                rotated(g, x, turn, cos_cache, sin_cache, interleaved=bool(self.rotary_interleaved))
                for x in (q, k)
            )
        if before is not None and past_key is not None and past_value is not None:
            total = g.Cast(g.Reshape(total_sequence_length, [1]), to=int(ir.DataType.INT64))
            k, v = (_continued(g, past, new, before, total) for past, new in ((past_key, k), (past_value, v)))
        return self._attended(g, q, k, v, at, attention_bias, head_sink), k, v

    def _in_heads(
        self, g: Builder, query: ir.Value, key: ir.Value | None, value: ir.Value | None
    ) -> tuple[ir.Value, ...]:
        """Queries, keys and values [batch, their heads, length, size]."""
        if key is not None and value is not None:
            heads = (self.num_heads, self.kv_num_heads, self.kv_num_heads)
            return tuple(in_heads(g, x, n) for x, n in zip((query, key, value), heads, strict=True))
        dims = dims_of(query)
        width, every = dims[2] if dims else None, self.num_heads + 2 * self.kv_num_heads
        if not isinstance(width, int) or width % every:
            raise UnsupportedError(f"{width} channels do not make {every} heads of queries, keys and values")
        whole = in_heads(g, query, every)
        return g.emit("Split", whole, [self.num_heads, *[self.kv_num_heads] * 2], outputs=3, axis=1)

    def _before(self, g: Builder, seqlens_k: ir.Value, q: ir.Value) -> ir.Value:
        """How many positions of each sample came before these: int64 [batch, 1]."""
        there = g.Add(g.Cast(g.Reshape(seqlens_k, [-1, 1]), to=int(ir.DataType.INT64)), _int64(g, 1))
        return g.Max(g.Sub(there, g.dim(q, 2)), _int64(g, 0))

    def _positions(self, g: Builder, q: ir.Value, before: ir.Value | None) -> ir.Value:
        """The position of each query: int64 [batch or 1, length]."""
        new = g.Unsqueeze(positions(g, q, 2), [0])
        return new if before is None else g.Add(before, new)

    def _attended(
        self,
        g: Builder,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        at: ir.Value,
        bias: ir.Value | None,
        sink: ir.Value | None,
    ) -> ir.Value:
        dims = dims_of(q)
        size = dims[3] if dims else None
        if not isinstance(size, int):
            raise UnsupportedError("the size of a head is not known")
        grouped = g.Reshape(q, [0, self.kv_num_heads, -1, size])
        factor = self.scale or 1.0 / math.sqrt(size)
        scores = g.Mul(g.MatMul(grouped, g.Transpose(k, perm=[0, 1, 3, 2])), factor)
        scores = g.Reshape(scores, [0, self.num_heads, -1, 0])
        if self.softcap > 0.0:
            scores = g.Mul(g.Tanh(g.Div(scores, self.softcap)), self.softcap)
        if bias is not None:
            scores = g.Add(scores, bias)
        if self.causal or self.local_window_size > 0:
            lowest = g.const(float(np.finfo(numpy_dtype(dtype_of(q))).min), dtype_of(q))
            scores = g.Where(self._seen(g, k, at), scores, lowest)
        shares = self._shares(g, scores, sink)
        shares = g.Reshape(shares, [0, self.kv_num_heads, -1, 0])
        y = g.Reshape(g.MatMul(shares, v), [0, self.num_heads, -1, size])
        return g.Reshape(g.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, self.num_heads * size])

    def _seen(self, g: Builder, k: ir.Value, at: ir.Value) -> ir.Value:
        """Which keys a query sees: bool [batch or 1, 1, queries, keys]."""
        queries, keys = g.Unsqueeze(at, [1, 3]), positions(g, k, 2)
        seen = []
        if self.causal:
            seen.append(g.LessOrEqual(keys, queries))
        if self.local_window_size > 0:
            seen.append(g.Less(g.Sub(queries, keys), _int64(g, self.local_window_size)))
        return seen[0] if len(seen) == 1 else g.And(*seen)

    def _shares(self, g: Builder, scores: ir.Value, sink: ir.Value | None) -> ir.Value:
        """softmax over the keys, and where there is one over a sink that takes part and has no value."""
        if sink is None and self.smooth_softmax != 1:
            return g.Softmax(scores, axis=-1)
        row = g.Slice(scores, [0], [1], [3])
        if sink is None:
            extra = g.zeros_like(row)
        else:
            extra = g.Expand(g.Reshape(sink, [1, self.num_heads, 1, 1]), g.shape(row))
        return g.Slice(g.Softmax(g.Concat(scores, extra, axis=3), axis=-1), [0], [-1], [3])


def _continued(g: Builder, past: ir.Value, new: ir.Value, before: ir.Value, total: ir.Value) -> ir.Value:
    """The past's first positions, of each sample `before`, and the new ones behind them; then zeros."""
    length, held = g.dim(new, 2), g.dim(past, 2)
    positions_all = g.Max(held, total)
    t = g.Unsqueeze(g.Range(_int64(g, 0), g.Squeeze(positions_all, [0]), _int64(g, 1)), [0])
    old = g.Less(t, before)
    behind = g.Sub(t, before)
    there = g.Less(behind, length)
    from_new = g.Add(held, g.Min(behind, g.Sub(length, _int64(g, 1))))
    places = g.Unsqueeze(g.Where(old, t, from_new), [2])
    both = g.Transpose(g.Concat(past, new, axis=2), perm=[0, 2, 1, 3])
    taken = g.Transpose(g.GatherND(both, places, batch_dims=1), perm=[0, 2, 1, 3])
    return g.Where(g.Unsqueeze(there, [1, 3]), taken, g.const(0, dtype_of(new)))


def _int64(g: Builder, number: int) -> ir.Value:
    return g.const(number, ir.DataType.INT64)
