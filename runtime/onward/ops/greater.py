from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onward.graph import Array, Expression, Lowering, Op, op
from onward.ops._broadcast import AxisBroadcast


@op("Greater", since=(7, 9, 13))
class Greater(Op):
    """C = A > B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A > B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("gt", B)

    def lower(self, b: Lowering, outputs: Sequence[ir.Value], A: ir.Value, B: ir.Value) -> None:
        b.integers("gt", outputs[0], A, B)


@op("Greater", since=1)
class Greater1(AxisBroadcast):
    """Greater with broadcasting from `axis` on."""
