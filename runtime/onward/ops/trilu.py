from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op


@op("Trilu", since=14)
class Trilu(Op):
    """The upper or lower triangle of each matrix, from the k-th diagonal on; zeros elsewhere."""

    static_operands = ("k",)

    upper: int = 1

    def kernel(self, input: Array, k: Array | None = None) -> Array:
        diagonal = 0 if k is None else int(k.reshape(-1)[0])
        return np.triu(input, diagonal) if self.upper else np.tril(input, diagonal)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value, k: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        return g.Trilu(dy, k, upper=self.upper), None
