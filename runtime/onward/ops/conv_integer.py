from __future__ import annotations

from onward.graph import Array, op
from onward.ops._convolution import Convolving
from onward.ops._quantization import wrapped
from onward.ops._quantized_product import integer_convolve


@op("ConvInteger", since=10)
class ConvInteger(Convolving):
    """The convolution of x − x_zero_point with w − w_zero_point in int32, which wraps around.

    Padding is x_zero_point, which is one number; w_zero_point is one, or one an output channel.
    """

    def kernel(
        self, x: Array, w: Array, x_zero_point: Array | None = None, w_zero_point: Array | None = None
    ) -> Array:
        geometry = self.geometry_of(x.shape, w.shape)
        return wrapped(integer_convolve(x, w, x_zero_point, w_zero_point, geometry, self.group))
