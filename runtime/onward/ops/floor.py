from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Floor", since=(1, 6, 13))
class Floor(Op):
    """The largest whole number that is not above X."""

    def kernel(self, X: Array) -> Array:
        return np.floor(X)

    def element(self, X: Expression) -> Expression:
        return X.apply("floor")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[None, ...]:
        return (None,)
