from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, UnsupportedError
from onward.graph import Array, Builder, Op, dtype_of, is_float, op
from onward.ops._shape import constant_of
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._quantized import unpacked

_STORED = {2: np.dtype(ml_dtypes.uint2), 4: np.dtype(ml_dtypes.uint4), 8: np.dtype(np.uint8)}


@op("MatMulNBits", domain=DOMAIN, since=1)
class MatMulNBits(Op):
    """Y = A · Bᵀ + bias; B is [N, K] in blocks along K, unsigned integers of 2, 4 or 8 bits in constants.

    A block's numbers are (q − zero point) · scale; without zero points that is the middle of the range.
    `accuracy_level`, which lets onnxruntime quantise A, has no effect: A stays what it is.
    """

    weight_operands = ("bias",)

    K: int
    N: int
    accuracy_level: int = 0
    bits: int = 4
    block_size: int
    weight_prepacked: int = 0

    def canonical(
        self,
        g: Builder,
        A: ir.Value,
        B: ir.Value,
        scales: ir.Value,
        zero_points: ir.Value | None = None,
        g_idx: ir.Value | None = None,
        bias: ir.Value | None = None,
    ) -> ir.Value:
        if g_idx is not None or self.weight_prepacked:
            raise UnsupportedError("g_idx and weights packed for one machine are not supported")
        if self.bits not in _STORED:
            raise UnsupportedError(f"weights of {self.bits} bits are not supported; of 2, 4 and 8 they are")
        blocks = -(-self.K // self.block_size)
        packed = constant_of(B)
        if packed is None or packed.dtype != np.uint8:
            raise UnsupportedError("its weights are not constants of uint8")
        whole = unpacked(packed.reshape(self.N, -1), self.bits)
        if whole.shape[1] < self.K:
            raise InvalidModelError(f"B {list(packed.shape)} does not hold {self.N} rows of {self.K} numbers")
        stored = _STORED[self.bits]
        q = g.const(np.ascontiguousarray(whole[:, : self.K].T).astype(stored))
        by_block = g.Transpose(g.Reshape(scales, [self.N, blocks]), perm=[1, 0])
        if zero_points is not None and is_float(zero_points):
            shift = g.Transpose(g.Reshape(zero_points, [self.N, blocks]), perm=[1, 0])
            w = g.DequantizeLinear(q, by_block, axis=0, block_size=self.block_size)
            ones = g.const(np.ones((self.K, self.N), np.int8))
            moved = g.Mul(by_block, g.Cast(shift, to=int(dtype_of(scales))))
            w = g.Sub(w, g.DequantizeLinear(ones, moved, axis=0, block_size=self.block_size))
        else:
            zeros = g.const(self._zeros(zero_points, blocks).T.astype(stored))
            w = g.DequantizeLinear(q, by_block, zeros, axis=0, block_size=self.block_size)
        y = g.MatMul(A, w)
        return y if bias is None else g.Add(y, bias)

    def _zeros(self, zero_points: ir.Value | None, blocks: int) -> Array:
        if zero_points is None:
            return np.full((self.N, blocks), 1 << (self.bits - 1), np.uint8)
        packed = constant_of(zero_points)
        if packed is None:
            raise UnsupportedError("its zero points are not constants")
        return np.ascontiguousarray(unpacked(packed.reshape(self.N, -1), self.bits)[:, :blocks])
