"""Rotary position embeddings (Su et al., RoFormer, 2021), in standard operators."""

from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, dims_of

__all__ = ["positions", "rotated"]


def positions(g: Builder, x: ir.Value, axis: int) -> ir.Value:
    """0, 1, ... along an axis: int64 [length]."""
    zero, one = g.const(0, ir.DataType.INT64), g.const(1, ir.DataType.INT64)
    return g.Range(zero, g.Squeeze(g.dim(x, axis), [0]), one)


def rotated(
    g: Builder, x: ir.Value, at: ir.Value, cos_cache: ir.Value, sin_cache: ir.Value, *, interleaved: bool
) -> ir.Value:
    """Pairs of channels turned by the angles of their position; channels beyond the pairs stay.

    Args:
        g: where it is written.
        x: [batch, heads, length, size].
        at: positions, int64 [batch or 1, length].
        cos_cache, sin_cache: [positions, pairs].
        interleaved: whether pairs are neighbours; else the second of each stands `pairs` channels behind.
    """
    dims, cached = dims_of(x), dims_of(cos_cache)
    size, pairs = dims[3] if dims else None, cached[1] if cached else None
    if not isinstance(size, int) or not isinstance(pairs, int):
        raise UnsupportedError(f"the size of a head, {size}, and the pairs that turn, {pairs}, must be known")
    if not 2 * pairs <= size:
        raise UnsupportedError(f"{pairs} pairs of channels do not fit into heads of {size}")
    cos, sin = (g.Unsqueeze(g.Gather(cache, at, axis=0), [1]) for cache in (cos_cache, sin_cache))
    rest = []
    if 2 * pairs < size:
        x, *rest = g.emit("Split", x, [2 * pairs, size - 2 * pairs], outputs=2, axis=3)
    if interleaved:
        split = g.emit("Split", g.Reshape(x, [0, 0, 0, pairs, 2]), [1, 1], outputs=2, axis=4)
        first, second = (g.Squeeze(part, [4]) for part in split)
    else:
        first, second = g.emit("Split", x, [pairs, pairs], outputs=2, axis=3)
    turned = [
        g.Sub(g.Mul(first, cos), g.Mul(second, sin)),
        g.Add(g.Mul(second, cos), g.Mul(first, sin)),
    ]
    if interleaved:
        y = g.Reshape(g.Concat(*(g.Unsqueeze(each, [4]) for each in turned), axis=4), [0, 0, 0, 2 * pairs])
        return g.Concat(y, *rest, axis=3) if rest else y
    return g.Concat(*turned, *rest, axis=3)
