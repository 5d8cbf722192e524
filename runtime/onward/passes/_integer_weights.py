"""Float weights as integers and scales, and which operands of which nodes are such weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from onward.graph import Array, numpy_dtype
from onward.ops._quantization import integer_range, spread

__all__ = ["Integers", "by_axis", "by_block", "output_axis", "summed_axis", "weight_of"]

_WEIGHT_OPERAND = {"MatMul": 1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1, "Gather": 0}
_TRIED = np.linspace(1.0, 0.7, 16, dtype=np.float32)
"""Shares of the range that is represented: what is cut off is paid for by finer steps."""


@final
@dataclass(frozen=True, eq=False)
class Integers:
    """A tensor as integers: (content - 0) · scale.

    Attributes:
        content: of an 8-bit or 4-bit type, of the tensor's shape.
        scale: float32, one an index of `axis`, or one a block along it.
        axis: the axis, of the tensor.
        block: elements in a block; 0: no blocks.
    """

    content: Array
    scale: Array
    axis: int
    block: int = 0


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant float32 weight of a product, a convolution or a table; None where it has none."""
    place = _WEIGHT_OPERAND.get(node.op_type)
    if node.domain or place is None or len(node.inputs) <= place:
        return None
    value = node.inputs[place]
    if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return None
    if value.dtype != ir.DataType.FLOAT or len(value.const_value.shape) < 2 or value.const_value.size == 0:
        return None
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) != 0:
        return None
    if node.op_type == "Gemm" and node.attributes.get_float("alpha", 1.0) != 1.0:
        return None
    return value


def output_axis(node: ir.Node, rank: int) -> int:
    """The axis of a node's weight whose indices are output channels, or rows of a table."""
    match node.op_type:
        case "MatMul":
            return rank - 1
        case "Gemm":
            return 0 if node.attributes.get_int("transB", 0) else 1
        case "ConvTranspose":
            return 1
        case _:
            return 0


def summed_axis(node: ir.Node, rank: int) -> int:
    """The axis of a matrix along which blocks lie: that which a product sums over, or a table's rows have."""
    if node.op_type == "MatMul":
        return rank - 2
    return 1 - output_axis(node, rank) if rank == 2 else rank - 1


def by_axis(weight: Array, axis: int, dtype: ir.DataType, least: Array | None = None) -> Integers:
    """Symmetric integers with a scale for each index of an axis: scale = max |w| / largest integer.

    Scales are at least `least`.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    _, high = integer_range(dtype)
    scale = _scales(np.abs(weight).max(others), high)
    if least is not None:
        scale = np.maximum(scale, least.astype(np.float32))
    return _rounded(weight, scale, axis, 0, dtype)


def by_block(weight: Array, axis: int, block: int, dtype: ir.DataType) -> Integers:
    """Symmetric integers with a scale for each block along an axis; the last one may be shorter.

    Of 4 bits, whose steps are coarse, the scale is that of 16 shares of the range that leaves the smallest
    sum of squared errors in the block.
    """
    axis %= weight.ndim
    extent = weight.shape[axis]
    blocks = -(-extent // block)
    moved = np.moveaxis(weight, axis, -1)
    padded = np.zeros((*moved.shape[:-1], blocks * block), np.float32)
    padded[..., :extent] = moved
    parts = padded.reshape(*moved.shape[:-1], blocks, block)
    low, high = integer_range(dtype)
    scale = _scales(np.abs(parts).max(-1), high)
    if dtype == ir.DataType.INT4:
        best = np.full(scale.shape, np.inf, np.float32)
        full = scale
        for share in _TRIED:
            tried = _scales(full * share, 1)
            whole = np.clip(np.rint(parts / tried[..., None]), low, high)
            error = np.square(whole * tried[..., None] - parts).sum(-1)
            better = error < best
            best, scale = np.where(better, error, best), np.where(better, tried, scale)
    return _rounded(weight, np.ascontiguousarray(np.moveaxis(scale, -1, axis)), axis, block, dtype)


def _scales(extent: Array, high: int) -> Array:
    """Never 0, nor so small that a quotient is infinite."""
    return np.maximum(extent.astype(np.float32) / np.float32(high), np.finfo(np.float32).tiny)


def _rounded(weight: Array, scale: Array, axis: int, block: int, dtype: ir.DataType) -> Integers:
    low, high = integer_range(dtype)
    whole = np.clip(np.rint(weight / spread(scale, weight.shape, axis, block)), low, high)
    return Integers(whole.astype(np.int8).astype(numpy_dtype(dtype)), scale, axis, block)
