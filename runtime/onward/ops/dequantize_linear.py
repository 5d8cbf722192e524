from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, dtype_of, numpy_dtype, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._quantization import dequantized, fitting, fitting_values, spread, spread_values


@op("DequantizeLinear", since=(10, 13, 19, 21, 23, 24, 25, 28))
class DequantizeLinear(Op):
    """y = (x - x_zero_point) · x_scale, of x_scale's type or of `output_dtype`."""

    axis: int = 1
    block_size: int = 0
    output_dtype: int = 0

    def kernel(self, x: Array, x_scale: Array, x_zero_point: Array | None = None) -> Array:
        fitting(x_scale, x_zero_point)
        scale = spread(x_scale, x.shape, self.axis, self.block_size)
        zero = None if x_zero_point is None else spread(x_zero_point, x.shape, self.axis, self.block_size)
        dtype = numpy_dtype(ir.DataType(self.output_dtype)) if self.output_dtype else x_scale.dtype
        if dtype == ml_dtypes.float8_e8m0fnu:
            dtype = np.dtype(np.float32)
        return dequantized(x, scale, zero, dtype)

    def lower(
        self,
        static: Static,
        outputs: Values,
        x: ir.Value,
        x_scale: ir.Value,
        x_zero_point: ir.Value | None = None,
    ) -> requests.Body:
        return requests.Body(rounds=True)

    def expand(
        self, g: Builder, x: ir.Value, x_scale: ir.Value, x_zero_point: ir.Value | None = None
    ) -> ir.Value:
        """The difference, exact, and the product."""
        shape = static_shape(x)
        assert shape is not None
        fitting_values(x_scale, x_zero_point)
        kind = ir.DataType(self.output_dtype) if self.output_dtype else dtype_of(x_scale)
        kind = ir.DataType.FLOAT if kind == ir.DataType.FLOAT8E8M0 else kind
        work = ir.DataType.FLOAT if kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else kind
        exact = ir.DataType.FLOAT
        if dtype_of(x).is_integer():
            exact = ir.DataType.INT32 if dtype_of(x).bitwidth <= 16 else ir.DataType.INT64
        difference = g.Cast(x, to=int(exact))
        if x_zero_point is not None:
            zero = g.Cast(x_zero_point, to=int(exact))
            difference = g.Sub(difference, spread_values(g, zero, shape, self.axis, self.block_size))
        scale = spread_values(g, g.Cast(x_scale, to=int(work)), shape, self.axis, self.block_size)
        return g.Cast(g.Mul(g.Cast(difference, to=int(work)), scale), to=int(kind))
