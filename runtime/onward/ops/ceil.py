from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Ceil", since=(1, 6, 13))
class Ceil(Op):
    """The smallest whole number that is not below X."""

    def kernel(self, X: Array) -> Array:
        return np.ceil(X)

    def element(self, X: Expression) -> Expression:
        return X.apply("ceil")

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value) -> tuple[None, ...]:
        return (None,)
