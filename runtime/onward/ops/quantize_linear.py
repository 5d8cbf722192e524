from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Array, Op, numpy_dtype, op
from onward.ops._quantization import fitting, quantized, spread


@op("QuantizeLinear", since=(10, 13, 19, 21, 23, 24, 25, 28))
class QuantizeLinear(Op):
    """y = saturate(round(x / y_scale) + y_zero_point), halves to even.

    The division is in the type of y_scale, or in `precision`; where y_scale is a power of two alone
    (float8e8m0) or an integer, in the type of x, float32 for integers.
    """

    axis: int = 1
    block_size: int = 0
    output_dtype: int = 0
    precision: int = 0
    saturate: int = 1

    def target(self, zero_point: ir.DataType | None) -> ir.DataType:
        """The element type of y, for a zero point of this type.

        Raises:
            InvalidModelError: the zero point is of another type than `output_dtype` says.
        """
        wanted = ir.DataType(self.output_dtype)
        if zero_point is None:
            return ir.DataType.UINT8 if wanted == ir.DataType.UNDEFINED else wanted
        if wanted not in (ir.DataType.UNDEFINED, zero_point):
            raise InvalidModelError(
                f"output_dtype is {wanted.name.lower()}, but y_zero_point is {zero_point.name.lower()}"
            )
        return zero_point

    def kernel(self, x: Array, y_scale: Array, y_zero_point: Array | None = None) -> Array:
        fitting(y_scale, y_zero_point)
        scale = spread(y_scale, x.shape, self.axis, self.block_size)
        zero = None if y_zero_point is None else spread(y_zero_point, x.shape, self.axis, self.block_size)
        kind = None if y_zero_point is None else ir.DataType.from_numpy(y_zero_point.dtype)
        work = self._work(x.dtype, y_scale.dtype)
        return quantized(x, scale, zero, self.target(kind), work, saturate=bool(self.saturate))

    def _work(self, x: np.dtype[Any], scale: np.dtype[Any]) -> np.dtype[Any]:
        if self.precision:
            return numpy_dtype(ir.DataType(self.precision))
        if scale.kind not in "iu" and scale != ml_dtypes.float8_e8m0fnu:
            return scale
        return np.dtype(np.float32) if x.kind in "iu" else x
