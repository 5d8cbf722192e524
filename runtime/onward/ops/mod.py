from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Mod", since=(10, 13, 28))
class Mod(Op):
    """The remainder of A / B: of B's sign, or of A's with fmod."""

    fmod: int = 0

    def kernel(self, A: Array, B: Array) -> Array:
        return np.fmod(A, B) if self.fmod else np.mod(A, B)

    def element(self, A: Expression, B: Expression) -> Expression:
        return A.apply("fmod" if self.fmod else "mod", B)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, A: ir.Value, B: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return dy, None
