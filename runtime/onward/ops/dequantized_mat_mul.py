from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._shape import require_shape

__all__ = ["DequantizedMatMul", "nibbles"]


@op("DequantizedMatMul", domain=ONWARD_DOMAIN, since=1)
class DequantizedMatMul(Op):
    """Y = A · W, W[k, n] = (B[k, n] − zero_point[b, n]) · scale[b, n] with b = k // block_size, W in float32.

    DequantizeLinear of a weight and the product that reads it, so that kernels read the integers. B is
    [K, N] int8, or with `bits` 4 [⌈K/2⌉, N] uint8: row i has row 2i in its low four bits, row 2i + 1 in its
    high ones, both two's complements. scale, and zero_point of int8, are [⌈K / block_size⌉, N]; block_size 0
    is all of K. A [..., K] is float32.
    """

    K: int
    bits: int = 8
    block_size: int = 0

    def kernel(self, A: Array, B: Array, scale: Array, zero_point: Array | None = None) -> Array:
        block = self.block_size or self.K
        blocks = -(-self.K // block)
        require_shape("A", A, (*A.shape[:-1], self.K))
        require_shape("B", B, (-(-self.K * self.bits // 8), None))
        whole = B if self.bits == 8 else _unpacked(B)[: self.K]
        require_shape("scale", scale, (blocks, B.shape[-1]))
        exact = whole.astype(scale.dtype)
        if zero_point is not None:
            require_shape("zero_point", zero_point, (blocks, B.shape[-1]))
            exact -= np.repeat(zero_point, block, axis=0)[: self.K]
        return np.asarray(np.matmul(A, exact * np.repeat(scale, block, axis=0)[: self.K]), A.dtype)

    def lower(
        self,
        static: Static,
        outputs: Values,
        A: ir.Value,
        B: ir.Value,
        scale: ir.Value,
        zero_point: ir.Value | None = None,
    ) -> requests.WeightProduct:
        return requests.WeightProduct(
            outputs[0], A, B, scale, zero_point, self.K, self.bits, self.block_size or self.K
        )

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        A: ir.Value,
        B: ir.Value,
        scale: ir.Value,
        zero_point: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        w = self._weight(g, B, scale, zero_point)
        return g.MatMul(dy, g.Transpose(w, perm=[1, 0])), None, None, None

    def infer(
        self, A: ir.Value, B: ir.Value, scale: ir.Value, zero_point: ir.Value | None = None
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        left, right = dims_of(A), dims_of(B)
        return [(dtype_of(A), None if left is None or right is None else (*left[:-1], right[-1]))]

    def expand(
        self, g: Builder, A: ir.Value, B: ir.Value, scale: ir.Value, zero_point: ir.Value | None = None
    ) -> ir.Value:
        return g.MatMul(A, self._weight(g, B, scale, zero_point))

    def _weight(self, g: Builder, B: ir.Value, scale: ir.Value, zero_point: ir.Value | None) -> ir.Value:
        """W in standard operators."""
        whole = B
        if self.bits == 4:
            shape = static_shape(B)
            assert shape is not None
            wide = g.Cast(B, to=int(ir.DataType.INT32))
            high = g.Cast(g.Div(wide, g.const(16, np.int32)), to=int(ir.DataType.INT32))
            low = g.Sub(wide, g.Mul(high, g.const(16, np.int32)))
            both = [g.Unsqueeze(v, g.const([1], np.int64)) for v in (low, high)]
            rows = g.Reshape(g.Concat(*both, axis=1), g.const([2 * shape[0], shape[1]], np.int64))
            above = g.GreaterOrEqual(rows, g.const(8, np.int32))
            rows = g.Where(above, g.Sub(rows, g.const(16, np.int32)), rows)
            whole = g.Slice(rows, g.const([0], np.int64), g.const([self.K], np.int64), g.const([0], np.int64))
        at = g.const(np.arange(self.K) // (self.block_size or self.K), np.int64)
        kind = int(dtype_of(scale))
        exact = g.Cast(whole, to=kind)
        if zero_point is not None:
            exact = g.Sub(exact, g.Gather(g.Cast(zero_point, to=kind), at, axis=0))
        return g.Mul(exact, g.Gather(scale, at, axis=0))


def nibbles(whole: Array) -> Array:
    """Integers of 4 bits [K, N] as bytes [⌈K/2⌉, N]: even rows in the low bits."""
    low = whole.astype(np.int8).view(np.uint8) & np.uint8(15)
    if len(low) % 2:
        low = np.concatenate([low, np.zeros_like(low[:1])])
    return np.ascontiguousarray(low[::2] | (low[1::2] << np.uint8(4)))


def _unpacked(packed: Array) -> Array:
    """What `nibbles` packed, int8, with a row more where K is odd."""
    both = np.stack([packed << np.uint8(4), packed & np.uint8(0xF0)], axis=1)
    return both.view(np.int8).reshape(-1, packed.shape[1]) >> np.int8(4)
