"""Normalisation by the root mean square, which opset 21 has no operator of."""

from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, dims_of

__all__ = ["rms_normalized"]


def rms_normalized(
    g: Builder, x: ir.Value, scale: ir.Value, axis: int, epsilon: float
) -> tuple[ir.Value, ir.Value]:
    """x / sqrt(mean(x²) + epsilon) · scale over the axes from `axis` on, and the factor that x had."""
    dims = dims_of(x)
    if axis != -1 and dims is None:
        raise UnsupportedError(f"the rank of {x.name!r} is not known")
    rank = len(dims) if dims is not None else 1
    axes = [-1] if axis == -1 else list(range(axis % rank, rank))
    mean = g.ReduceMean(g.Mul(x, x), axes, keepdims=1)
    inverse = g.Reciprocal(g.Sqrt(g.Add(mean, epsilon)))
    return g.Mul(g.Mul(x, inverse), scale), inverse
