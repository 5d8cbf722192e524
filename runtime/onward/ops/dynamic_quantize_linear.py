from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._quantization import quantized

__all__ = ["DynamicQuantizeLinear", "scale_and_zero"]

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

    def lower(self, static: Static, outputs: Values, x: ir.Value) -> requests.Body:
        return requests.Body()

    def expand(self, g: Builder, x: ir.Value) -> tuple[ir.Value, ...]:
        scale, zero = scale_and_zero(g, x)
        whole = g.Add(g.Round(g.Div(x, scale)), zero)
        y = g.Where(g.IsNaN(whole), 0.0, g.Clip(whole, 0.0, float(_HIGHEST)))
        uint8 = int(ir.DataType.UINT8)
        return g.Cast(y, to=uint8), scale, g.Cast(zero, to=uint8)


def scale_and_zero(g: Builder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The scale of x, and its zero point as a float."""
    high, low = g.Max(g.ReduceMax(x, keepdims=0), 0.0), g.Min(g.ReduceMin(x, keepdims=0), 0.0)
    highest = float(_HIGHEST)
    scale = g.Where(g.Equal(high, low), 1.0, g.Div(g.Sub(high, low), highest))
    return scale, g.Round(g.Clip(g.Div(g.Neg(low), scale), 0.0, highest))
