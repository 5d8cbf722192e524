from __future__ import annotations

from onward.graph import Array, Op, op
from onward.ops._quantization import wrapped
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
