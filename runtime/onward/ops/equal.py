from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Expression, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._broadcast import AxisBroadcast


@op("Equal", since=(7, 11, 13, 19))
class Equal(Op):
    """C = A == B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A == B

    def element(self, A: Expression, B: Expression) -> Expression:
        if A.truth:
            return A.apply("and", B).apply("or", A.apply("not").apply("and", B.apply("not")))
        return A.apply("eq", B)

    def lower(self, static: Static, outputs: Values, A: ir.Value, B: ir.Value) -> requests.Integers:
        return requests.Integers(outputs[0], "eq", A, B)


@op("Equal", since=1)
class Equal1(AxisBroadcast):
    """Equal with broadcasting from `axis` on."""
