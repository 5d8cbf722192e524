from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.graph import Array, Op, numpy_dtype, op
from onward.ops._quantization import dequantized, fitting, spread


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
