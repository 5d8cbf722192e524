from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Array, Builder, Op, dtype_of, numpy_dtype, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._quantization import (
    INTEGER_TYPES,
    fitting,
    fitting_values,
    integer_range,
    quantized,
    spread,
    spread_values,
)


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

    def lower(
        self,
        static: Static,
        outputs: Values,
        x: ir.Value,
        y_scale: ir.Value,
        y_zero_point: ir.Value | None = None,
    ) -> requests.Body | requests.Unsupported:
        work = self._work(numpy_dtype(dtype_of(x)), numpy_dtype(dtype_of(y_scale)))
        wide = self.target(None if y_zero_point is None else dtype_of(y_zero_point))
        if work.kind != "f" and work != ml_dtypes.bfloat16:
            return requests.Unsupported(f"a division in {work}")
        return (
            requests.Unsupported("numbers of 32 bits") if wide.bitwidth > 16 else requests.Body(rounds=True)
        )

    def expand(
        self, g: Builder, x: ir.Value, y_scale: ir.Value, y_zero_point: ir.Value | None = None
    ) -> ir.Value:
        """The quotient, and what is left to do with it element by element."""
        work = ir.DataType.from_numpy(self._work(numpy_dtype(dtype_of(x)), numpy_dtype(dtype_of(y_scale))))
        kind = self.target(None if y_zero_point is None else dtype_of(y_zero_point))
        shape = static_shape(x)
        assert shape is not None
        fitting_values(y_scale, y_zero_point)
        scale = spread_values(g, g.Cast(y_scale, to=int(work)), shape, self.axis, self.block_size)
        quotient = g.Div(g.Cast(x, to=int(work)), scale)
        wide = work if work == ir.DataType.DOUBLE else ir.DataType.FLOAT
        quotient = g.Cast(quotient, to=int(wide))
        whole = g.Round(quotient) if kind in INTEGER_TYPES else quotient
        if y_zero_point is not None:
            offset = g.Cast(y_zero_point, to=int(wide))
            whole = g.Add(whole, spread_values(g, offset, shape, self.axis, self.block_size))
        if kind in INTEGER_TYPES:
            low, high = map(float, integer_range(kind))
            whole = g.Where(g.IsNaN(whole), low, g.Clip(whole, low, high))
            return g.Cast(whole, to=int(kind))
        return g.Cast(whole, to=int(kind), saturate=self.saturate)
