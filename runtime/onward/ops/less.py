from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onward.graph import Array, Expression, Lowering, Op, op
from onward.ops._broadcast import AxisBroadcast


@op("Less", since=(7, 9, 13))
class Less(Op):
    """C = A < B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A < B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("lt", B)

    def lower(self, b: Lowering, outputs: Sequence[ir.Value], A: ir.Value, B: ir.Value) -> None:
        b.integers("lt", outputs[0], A, B)


@op("Less", since=1)
class Less1(AxisBroadcast):
    """Less with broadcasting from `axis` on."""
