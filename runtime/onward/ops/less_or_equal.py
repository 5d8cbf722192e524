from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onward.graph import Array, Expression, Lowering, Op, op


@op("LessOrEqual", since=(12, 16))
class LessOrEqual(Op):
    """C = A <= B, broadcast as in NumPy."""

    def kernel(self, A: Array, B: Array) -> Array:
        return A <= B

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("le", B)

    def lower(self, b: Lowering, outputs: Sequence[ir.Value], A: ir.Value, B: ir.Value) -> None:
        b.integers("le", outputs[0], A, B)
