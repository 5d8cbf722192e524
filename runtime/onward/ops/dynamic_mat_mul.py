from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._quantization import quantized
from onward.ops._quantized_product import integer_matmul

__all__ = ["DynamicMatMul"]


@op("DynamicMatMul", domain=ONWARD_DOMAIN, since=1)
class DynamicMatMul(Op):
    """Y = (q − zero_point) · B in A's type, q = saturate(round(A / scale) + zero_point) in uint8.

    DynamicQuantizeLinear's integers, MatMulInteger and Cast in one; scale and zero_point are those that
    DynamicQuantizeLinear gives, B is [K, N] int8.
    """

    def kernel(self, A: Array, scale: Array, zero_point: Array, B: Array) -> Array:
        q = quantized(A, scale, zero_point, ir.DataType.UINT8, A.dtype)
        return np.asarray(integer_matmul(q, B, zero_point, None), A.dtype)

    def lower(
        self, static: Static, outputs: Values, A: ir.Value, scale: ir.Value, zero_point: ir.Value, B: ir.Value
    ) -> requests.RoundedProduct:
        return requests.RoundedProduct(outputs[0], A, scale, zero_point, B)

    def infer(
        self, A: ir.Value, scale: ir.Value, zero_point: ir.Value, B: ir.Value
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        left, right = dims_of(A), dims_of(B)
        return [(dtype_of(A), None if left is None or right is None else (*left[:-1], right[-1]))]

    def expand(self, g: Builder, A: ir.Value, scale: ir.Value, zero_point: ir.Value, B: ir.Value) -> ir.Value:
        kind = int(dtype_of(A))
        whole = g.Add(g.Round(g.Div(A, scale)), g.Cast(zero_point, to=kind))
        whole = g.Where(g.IsNaN(whole), 0.0, g.Clip(whole, 0.0, 255.0))
        q = g.Cast(whole, to=int(ir.DataType.UINT8))
        return g.Cast(g.MatMulInteger(q, B, zero_point), to=kind)
