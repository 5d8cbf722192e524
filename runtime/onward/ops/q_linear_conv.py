from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Builder, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._convolution import Convolving, same_convolution
from onward.ops._quantization import requantized, wrapped
from onward.ops._quantized_graph import channel_values, integer_convolution, requantized_values
from onward.ops._quantized_product import by_channel, integer_convolve


@op("QLinearConv", since=10)
class QLinearConv(Convolving):
    """y = saturate(round(total · x_scale · w_scale / y_scale) + y_zero_point).

    total = conv(x − x_zero_point, w − w_zero_point) + B. The convolution and B are in int32, the three
    scales are one factor in float32. w_scale and w_zero_point are one for the tensor, or one an output
    channel.
    """

    def kernel(
        self,
        x: Array,
        x_scale: Array,
        x_zero_point: Array,
        w: Array,
        w_scale: Array,
        w_zero_point: Array,
        y_scale: Array,
        y_zero_point: Array,
        B: Array | None = None,
    ) -> Array:
        if y_scale.size != 1 or x_scale.size != 1:
            raise ShapeError("x_scale and y_scale are one number each; only w may have one a channel")
        geometry = self.geometry_of(x.shape, w.shape)
        total = wrapped(integer_convolve(x, w, x_zero_point, w_zero_point, geometry, self.group))
        rank = len(geometry.out) + 1
        if B is not None:
            total += B.reshape(-1, *(1,) * (rank - 1))
        w_factor = by_channel(w_scale, w.shape[0], rank)
        factor = x_scale.astype(np.float32).reshape(()) * w_factor / y_scale.astype(np.float32).reshape(())
        return requantized(total, factor, y_zero_point.reshape(()))

    def lower(
        self,
        static: Static,
        outputs: Values,
        x: ir.Value,
        x_scale: ir.Value,
        x_zero_point: ir.Value,
        w: ir.Value,
        w_scale: ir.Value,
        w_zero_point: ir.Value,
        y_scale: ir.Value,
        y_zero_point: ir.Value,
        B: ir.Value | None = None,
    ) -> requests.Body:
        return requests.Body()

    def expand(
        self,
        g: Builder,
        x: ir.Value,
        x_scale: ir.Value,
        x_zero_point: ir.Value,
        w: ir.Value,
        w_scale: ir.Value,
        w_zero_point: ir.Value,
        y_scale: ir.Value,
        y_zero_point: ir.Value,
        B: ir.Value | None = None,
    ) -> ir.Value:
        """The convolution of floats in which it is exact, and what is left to do element by element."""
        shape, wide = static_shape(w), int(ir.DataType.FLOAT)
        assert shape is not None
        total = integer_convolution(
            g, x, w, x_zero_point, w_zero_point, lambda a, b: same_convolution(self, g, a, b)
        )
        rank = len(shape) - 1
        if B is not None:
            total = g.Add(total, channel_values(g, B, shape[0], rank))
        one = g.const([], np.int64)
        scales = [g.Reshape(g.Cast(scale, to=wide), one) for scale in (x_scale, y_scale)]
        weights = channel_values(g, g.Cast(w_scale, to=wide), shape[0], rank)
        factor = g.Div(g.Mul(scales[0], weights), scales[1])
        return requantized_values(g, total, factor, g.Reshape(y_zero_point, one))
