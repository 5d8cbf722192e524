from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Expression, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._broadcast import AxisBroadcast


@op("Greater", since=(7, 9, 13))
class Greater(Op):
    """C = A > B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A > B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("gt", B)

    def lower(self, static: Static, outputs: Values, A: ir.Value, B: ir.Value) -> requests.Integers:
        return requests.Integers(outputs[0], "gt", A, B)


@op("Greater", since=1)
class Greater1(AxisBroadcast):
    """Greater with broadcasting from `axis` on."""
