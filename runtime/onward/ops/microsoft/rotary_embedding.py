from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, Op, dims_of, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._attention import in_heads, rank_known
from onward.ops.microsoft._rotary import positions, rotated


@op("RotaryEmbedding", domain=DOMAIN, since=1)
class RotaryEmbedding(Op):
    """Pairs of channels turned by angles that grow with the position.

    input is [batch, length, heads · size] or [batch, heads, length, size]; position_ids [batch, length], or
    [1] with the position of the first; the caches have a row for each position.
    """

    interleaved: int = 0
    is_packed_batching: int = 0
    num_heads: int = 0
    rotary_embedding_dim: int = 0
    scale: float = 1.0

    def canonical(
        self, g: Builder, input: ir.Value, position_ids: ir.Value, cos_cache: ir.Value, sin_cache: ir.Value
    ) -> ir.Value:
        if self.is_packed_batching or self.scale != 1.0:
            raise UnsupportedError("packed batches and a scale are not supported")
        rank = rank_known(input)
        x = in_heads(g, input, self._heads(input, cos_cache)) if rank == 3 else input
        at = position_ids
        if rank_known(at) == 1:
            at = g.Unsqueeze(g.Add(positions(g, x, 2), at), [0])
        y = rotated(g, x, at, cos_cache, sin_cache, interleaved=bool(self.interleaved))
        return g.reshape_like(g.Transpose(y, perm=[0, 2, 1, 3]), input) if rank == 3 else y

    def _heads(self, x: ir.Value, cos_cache: ir.Value) -> int:
        if self.num_heads:
            return self.num_heads
        dims, cached = dims_of(x), dims_of(cos_cache)
        width, pairs = dims[2] if dims else None, cached[1] if cached else None
        if not isinstance(width, int) or not isinstance(pairs, int) or width % (2 * pairs):
            raise UnsupportedError(f"{width} channels, of which {pairs} pairs a head turn, need num_heads")
        return width // (2 * pairs)
