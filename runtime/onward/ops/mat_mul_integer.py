from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._quantization import wrapped
from onward.ops._quantized_graph import integer_product
from onward.ops._quantized_product import integer_matmul


@op("MatMulInteger", since=10)
class MatMulInteger(Op):
    """Y = (A − a_zero_point) · (B − b_zero_point) in int32, which wraps around.

    A zero point is one for the tensor, or one a row of A and a column of B.
    """

    def kernel(
        self, A: Array, B: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None
    ) -> Array:
        return wrapped(integer_matmul(A, B, a_zero_point, b_zero_point))

    def lower(
        self,
        static: Static,
        outputs: Values,
        A: ir.Value,
        B: ir.Value,
        a_zero_point: ir.Value | None = None,
        b_zero_point: ir.Value | None = None,
    ) -> requests.Body:
        return requests.Body()

    def expand(
        self,
        g: Builder,
        A: ir.Value,
        B: ir.Value,
        a_zero_point: ir.Value | None = None,
        b_zero_point: ir.Value | None = None,
    ) -> ir.Value:
        """The product of floats in which it is exact."""
        return integer_product(g, A, B, a_zero_point, b_zero_point)
