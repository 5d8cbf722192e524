from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._quantization import quantized, requantized, wrapped
from onward.ops._quantized_graph import integer_product, requantized_values, row_values
from onward.ops._quantized_product import by_row, integer_matmul


@op("QLinearMatMul", since=(10, 21))
class QLinearMatMul(Op):
    """y = saturate(round(total · a_scale · b_scale / y_scale) + y_zero_point).

    total = (a − a_zero_point) · (b − b_zero_point). The integer product is in int32; the three scales are one
    factor in float32. Scales and zero points are one for the tensor, or one a row of a and y and a column of
    b. float8 operands are multiplied in float32.
    """

    def kernel(
        self,
        a: Array,
        a_scale: Array,
        a_zero_point: Array,
        b: Array,
        b_scale: Array,
        b_zero_point: Array,
        y_scale: Array,
        y_zero_point: Array,
    ) -> Array:
        factor = by_row(a_scale.astype(np.float32), a.ndim) * _column(b_scale.astype(np.float32))
        factor = factor / by_row(y_scale.astype(np.float32), a.ndim)
        zero = by_row(y_zero_point, a.ndim)
        if a.dtype.kind in "iu":
            return requantized(wrapped(integer_matmul(a, b, a_zero_point, b_zero_point)), factor, zero)
        product = np.matmul(a.astype(np.float32), b.astype(np.float32)) * factor
        one, dtype = np.ones((), np.float32), ir.DataType.from_numpy(zero.dtype)
        return quantized(product, one, zero, dtype, np.dtype(np.float32))

    def lower(
        self,
        static: Static,
        outputs: Values,
        a: ir.Value,
        a_scale: ir.Value,
        a_zero_point: ir.Value,
        b: ir.Value,
        b_scale: ir.Value,
        b_zero_point: ir.Value,
        y_scale: ir.Value,
        y_zero_point: ir.Value,
    ) -> requests.Body | requests.Unsupported:
        whole = all(dtype_of(x).is_integer() for x in (a, b, y_zero_point))
        return requests.Body(rounds=True) if whole else requests.Unsupported("products of float8")

    def expand(
        self,
        g: Builder,
        a: ir.Value,
        a_scale: ir.Value,
        a_zero_point: ir.Value,
        b: ir.Value,
        b_scale: ir.Value,
        b_zero_point: ir.Value,
        y_scale: ir.Value,
        y_zero_point: ir.Value,
    ) -> ir.Value:
        """The product of floats in which it is exact, and what is left to do element by element."""
        rank, wide = len(dims_of(a) or ()), int(ir.DataType.FLOAT)
        total = integer_product(g, a, b, a_zero_point, b_zero_point)
        left, right, out = (g.Cast(scale, to=wide) for scale in (a_scale, b_scale, y_scale))
        factor = g.Div(g.Mul(row_values(g, left, rank), right), row_values(g, out, rank))
        return requantized_values(g, total, factor, row_values(g, y_zero_point, rank))


def _column(value: Array) -> Array:
    return value.reshape(()) if value.size == 1 else value
