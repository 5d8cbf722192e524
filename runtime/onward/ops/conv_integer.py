from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, op, requests
from onward.graph.requests import Static, Values
from onward.ops._convolution import Convolving, same_convolution
from onward.ops._quantization import wrapped
from onward.ops._quantized_graph import integer_convolution
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

    def lower(
        self,
        static: Static,
        outputs: Values,
        x: ir.Value,
        w: ir.Value,
        x_zero_point: ir.Value | None = None,
        w_zero_point: ir.Value | None = None,
    ) -> requests.Body:
        return requests.Body()

    def expand(
        self,
        g: Builder,
        x: ir.Value,
        w: ir.Value,
        x_zero_point: ir.Value | None = None,
        w_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        """The convolution of floats in which it is exact."""
        return integer_convolution(
            g, x, w, x_zero_point, w_zero_point, lambda a, b: same_convolution(self, g, a, b)
        )
