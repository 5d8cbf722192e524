from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, Op, dims_of, op
from onward.ops._shape import constant_of, normalized
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._attention import rank_known
from onward.ops.microsoft._quantized import unpacked


@op("GatherBlockQuantized", domain=DOMAIN, since=1)
class GatherBlockQuantized(Op):
    """Rows of a table of integers in blocks, each block with a scale: only what is taken is dequantised.

    Tables of uint8 have `bits` a number, the lowest first, and without zero points the middle of the range.
    """

    bits: int = 4
    block_size: int = 128
    gather_axis: int = 0
    quantize_axis: int = 1

    def canonical(
        self,
        g: Builder,
        data: ir.Value,
        indices: ir.Value,
        scales: ir.Value,
        zero_points: ir.Value | None = None,
    ) -> ir.Value:
        rank, behind = rank_known(data), rank_known(indices) - 1
        rows, along = normalized(self.gather_axis, rank), normalized(self.quantize_axis, rank)
        if rows == along:
            raise UnsupportedError("a table in blocks along the axis that is taken from is not supported")
        packed = data.dtype == ir.DataType.UINT8
        if packed and (self.bits not in (2, 4, 8) or (self.bits < 8 and rows == rank - 1)):
            raise UnsupportedError(f"a table of {self.bits} bits from which axis {rows} of {rank} is taken")
        if not packed:
            data, zero_points = _wide(g, data), zero_points and _wide(g, zero_points)
        elif zero_points is None:
            middle = g.Cast(g.const(1 << (self.bits - 1), ir.DataType.INT32), to=int(ir.DataType.UINT8))
            zero_points = g.Expand(middle, g.shape(scales))
        elif self.bits < 8:
            zero_points = _unpacked_constant(g, zero_points, self.bits, scales)
        q = g.Gather(data, indices, axis=rows)
        if packed and self.bits < 8:
            q = _unpacked(g, q, self.bits, rank + behind)
        by_block = g.Gather(scales, indices, axis=rows)
        zeros = None if zero_points is None else g.Gather(zero_points, indices, axis=rows)
        moved = along + (behind if along > rows else 0)
        return g.DequantizeLinear(q, by_block, zeros, axis=moved, block_size=self.block_size)


def _wide(g: Builder, x: ir.Value) -> ir.Value:
    """Constants of 4 bits as 8, of which Gather takes."""
    if x.dtype not in (ir.DataType.INT4, ir.DataType.UINT4):
        raise UnsupportedError(f"a table of {x.dtype} is not supported; uint8, int4 and uint4 are")
    held = constant_of(x)
    if held is None:
        raise UnsupportedError("its table or zero points are not constants")
    return g.const(held.astype(np.uint8 if x.dtype == ir.DataType.UINT4 else np.int8))


def _unpacked_constant(g: Builder, x: ir.Value, bits: int, scales: ir.Value) -> ir.Value:
    held, dims = constant_of(x), dims_of(scales)
    if held is None or dims is None or not isinstance(dims[-1], int):
        raise UnsupportedError("its zero points are not constants")
    return g.const(unpacked(held, bits)[..., : dims[-1]])


def _unpacked(g: Builder, x: ir.Value, bits: int, rank: int) -> ir.Value:
    """Bytes as numbers of so many bits, the lowest first, along the last axis."""
    mask = g.const(np.array((1 << bits) - 1, np.uint8))
    parts = [
        g.BitwiseAnd(g.BitShift(x, g.const(np.array(shift, np.uint8)), direction="RIGHT"), mask)
        for shift in range(0, 8, bits)
    ]
    return g.Reshape(
        g.Concat(*(g.Unsqueeze(part, [rank]) for part in parts), axis=rank), [0] * (rank - 1) + [-1]
    )
