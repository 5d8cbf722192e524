from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Expression, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._broadcast import AxisBroadcast


@op("Less", since=(7, 9, 13))
class Less(Op):
    """C = A < B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A < B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("lt", B)

    def lower(self, static: Static, outputs: Values, A: ir.Value, B: ir.Value) -> requests.Integers:
        return requests.Integers(outputs[0], "lt", A, B)


@op("Less", since=1)
class Less1(AxisBroadcast):
    """Less with broadcasting from `axis` on."""
