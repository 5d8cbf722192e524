from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Expression, Op, dims_of, op


@op("PRelu", since=(7, 9, 16))
class PRelu(Op):
    """Y = X above zero, else slope · X; slope is broadcast to X."""

    def kernel(self, X: Array, slope: Array) -> Array:
        return np.where(X < 0, slope * X, X)

    def element(self, X: Expression, slope: Expression) -> Expression:
        return X.apply("lt", 0.0).apply("select", X * slope, X)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value, slope: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        positive = g.Greater(X, 0.0)
        return g.Where(positive, dy, g.Mul(dy, slope)), g.Where(positive, 0.0, g.Mul(dy, X))


@op("PRelu", since=(1, 6))
class PRelu1(Op):
    """PRelu with one slope, or one a channel."""

    def canonical(self, g: Builder, X: ir.Value, slope: ir.Value) -> ir.Value:
        dims = dims_of(X)
        if dims is None:
            raise UnsupportedError("a slope a channel needs the rank of X")
        trailing = list(range(1, len(dims) - 1))
        return g.PRelu(X, g.Unsqueeze(slope, trailing) if trailing and dims_of(slope) != () else slope)
