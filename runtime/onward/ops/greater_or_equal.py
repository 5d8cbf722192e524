from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Expression, Op, op, requests
from onward.graph.requests import Static, Values


@op("GreaterOrEqual", since=(12, 16))
class GreaterOrEqual(Op):
    """C = A >= B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A >= B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("ge", B)

    def lower(self, static: Static, outputs: Values, A: ir.Value, B: ir.Value) -> requests.Integers:
        return requests.Integers(outputs[0], "ge", A, B)
