from __future__ import annotations

from onward.graph import Array, Op, op
from onward.ops._quantization import wrapped
from onward.ops._quantized_product import integer_convolve
from onward.ops.conv import conv_geometry


@op("ConvInteger", since=10)
class ConvInteger(Op):
    """The convolution of x − x_zero_point with w − w_zero_point in int32, which wraps around.

    Padding is x_zero_point, which is one number; w_zero_point is one, or one an output channel.
    """

    auto_pad: str = "NOTSET"
    dilations: tuple[int, ...] | None = None
    group: int = 1
    kernel_shape: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def kernel(
        self, x: Array, w: Array, x_zero_point: Array | None = None, w_zero_point: Array | None = None
    ) -> Array:
        geometry = conv_geometry(self, x.shape, w.shape)
        return wrapped(integer_convolve(x, w, x_zero_point, w_zero_point, geometry, self.group))
