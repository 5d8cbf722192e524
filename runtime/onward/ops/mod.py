from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Unsupported, Values


@op("Mod", since=(10, 13, 28))
class Mod(Op):
    """The remainder of A / B: of B's sign, or of A's with fmod."""

    fmod: int = 0

    def kernel(self, A: Array, B: Array) -> Array:
        return np.fmod(A, B) if self.fmod else np.mod(A, B)

    def lower(
        self, static: Static, outputs: Values, A: ir.Value, B: ir.Value
    ) -> requests.Integers | Unsupported:
        if self.fmod:
            return Unsupported("fmod")
        return requests.Integers(outputs[0], "mod", A, B)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, A: ir.Value, B: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return dy, None
