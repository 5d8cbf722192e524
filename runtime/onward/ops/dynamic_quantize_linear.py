from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Op, op
from onward.ops._quantization import quantized

_HIGHEST = np.float32(255)


@op("DynamicQuantizeLinear", since=11)
class DynamicQuantizeLinear(Op):
    """x as uint8, its scale and zero point from the range of x, to which 0 is added.

    y_scale = (max − min) / 255, y_zero_point = saturate(round(−min / y_scale)). All zeros have scale 1, for
    which the standard's formula would divide by 0.
    """

    def kernel(self, x: Array) -> tuple[Array, Array, Array]:
        high, low = np.max(x, initial=np.float32(0)), np.min(x, initial=np.float32(0))
        scale = np.asarray((high - low) / _HIGHEST if high != low else np.float32(1), np.float32)
        zero = np.asarray(np.rint(np.clip(-low / scale, np.float32(0), _HIGHEST)).astype(np.uint8))
        y = quantized(x, scale, zero, ir.DataType.UINT8, np.dtype(np.float32))
        return y, scale, zero
