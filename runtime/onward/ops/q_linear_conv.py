from __future__ import annotations

import numpy as np

from onward.errors import ShapeError
from onward.graph import Array, op
from onward.ops._convolution import Convolving
from onward.ops._quantization import requantized, wrapped
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
