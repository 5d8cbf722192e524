"""Scaled dot-product attention in many heads, in standard operators."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, dims_of, dtype_of, numpy_dtype

__all__ = ["attend", "blocked", "in_heads", "rank_known"]


def rank_known(x: ir.Value) -> int:
    """The rank of an operand.

    Raises:
        UnsupportedError: it is not known.
    """
    dims = dims_of(x)
    if dims is None:
        raise UnsupportedError(f"the rank of {x.name!r} is not known")
    return len(dims)


def in_heads(g: Builder, x: ir.Value, heads: int) -> ir.Value:
    """[batch, length, heads · size] as [batch, heads, length, size]."""
    dims = dims_of(x)
    width = dims[2] if dims is not None else None
    if isinstance(width, int) and width % heads:
        raise UnsupportedError(f"{width} channels do not make {heads} heads")
    size = width // heads if isinstance(width, int) else -1
    return g.Transpose(g.Reshape(x, [0, 0, heads, size]), perm=[0, 2, 1, 3])


def blocked(g: Builder, kept: ir.Value, like: ir.Value, value: float) -> ir.Value:
    """0 where `kept` is not 0, else `value`, in an operand's element type."""
    dtype = dtype_of(like)
    truth = g.Cast(kept, to=int(ir.DataType.BOOL))
    return g.Where(truth, g.const(0, dtype), g.const(value, dtype))


def _later(g: Builder, q: ir.Value, k: ir.Value) -> ir.Value:
    """[queries, keys]: the lowest number where a key is later than its query; the last two are aligned."""
    queries, keys = g.dim(q, 2), g.dim(k, 2)
    ones = g.Expand(g.const(1, ir.DataType.INT32), g.Concat(queries, keys, axis=0))
    before = g.Trilu(ones, g.Squeeze(g.Sub(keys, queries), [0]), upper=0)
    return blocked(g, before, q, float(np.finfo(numpy_dtype(dtype_of(q))).min))


def attend(
    g: Builder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    added: list[ir.Value],
    *,
    scale: float | None,
    causal: bool,
) -> ir.Value:
    """softmax(q · kᵀ · scale + added) · v, of [batch, heads, length, size] to [batch, length, channels]."""
    dims = dims_of(q)
    size = dims[3] if dims is not None else None
    if scale is None and not isinstance(size, int):
        raise UnsupportedError("the size of a head is not known, and no scale is given")
    factor = scale if scale is not None else 1.0 / math.sqrt(float(size))  # type: ignore[arg-type]
    scores = g.Mul(g.MatMul(q, g.Transpose(k, perm=[0, 1, 3, 2])), factor)
    for part in [*added, *([_later(g, q, k)] if causal else [])]:
        scores = g.Add(scores, part)
    y = g.Transpose(g.MatMul(g.Softmax(scores, axis=-1), v), perm=[0, 2, 1, 3])
    dims = dims_of(y)
    known = dims is not None and isinstance(dims[2], int) and isinstance(dims[3], int)
    return g.Reshape(y, [0, 0, int(dims[2]) * int(dims[3]) if known else -1])  # type: ignore[index,arg-type]
