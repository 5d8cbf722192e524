from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, dtype_of, is_float, op, requests
from onward.graph.requests import Static, Values
from onward.ops._broadcast import AxisBroadcast
from onward.ops._floats import is_integer


@op("Pow", since=(7, 12, 13, 15))
class Pow(Op):
    """Z = X to the power of Y, in X's element type, broadcast as in NumPy."""

    def kernel(self, X: Array, Y: Array) -> Array:
        if not is_integer(X):
            exponent = Y.astype(X.dtype, copy=False)
            if Y.ndim == 0 and Y == 2:
                return X * X
            return np.power(X, exponent)
        if is_integer(Y) and not np.any(Y < 0):
            return np.power(X, Y.astype(X.dtype))
        return np.power(X.astype(np.float64), Y.astype(np.float64)).astype(X.dtype)

    def element(self, X: Expression, Y: Expression) -> Expression:
        if Y.op != "constant" or not math.isfinite(Y.value):
            return X.apply("power", Y)
        if Y.value == int(Y.value):
            return X.power(Y.value)
        # Powers of negative infinity are those of infinity; other negative numbers have none.
        return X.apply("eq", -math.inf).apply("select", math.inf if Y.value > 0 else 0.0, X.power(Y.value))

    def lower(
        self, static: Static, outputs: Values, X: ir.Value, Y: ir.Value
    ) -> requests.Body | requests.Unsupported:
        return requests.NO_KERNEL if dtype_of(X) == dtype_of(Y) else requests.Body()

    def expand(self, g: Builder, X: ir.Value, Y: ir.Value) -> ir.Value:
        kind = dtype_of(X)
        if is_float(X):
            return g.Pow(X, g.Cast(Y, to=int(kind)))
        wide = g.Pow(g.Cast(X, to=int(ir.DataType.DOUBLE)), g.Cast(Y, to=int(ir.DataType.DOUBLE)))
        return g.Cast(wide, to=int(kind))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, X: ir.Value, Y: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        exponent = Y if dtype_of(Y) == dtype_of(X) else g.Cast(Y, to=int(dtype_of(X)))
        slope = g.Mul(exponent, g.Pow(X, g.Sub(exponent, 1.0)))
        dX = g.Mul(dy, g.Where(g.Equal(exponent, 0.0), 0.0, slope))
        if not is_float(Y):
            return dX, None
        # 0 to any positive power is 0, whatever the power: its slope there is 0, not 0 · log 0
        log = g.Where(g.Equal(X, 0.0), 0.0, g.Log(X))
        dY = g.Mul(dy, g.Mul(y, log))
        return dX, dY if exponent is Y else g.Cast(dY, to=int(dtype_of(Y)))


@op("Pow", since=1)
class Pow1(AxisBroadcast):
    """Pow with broadcasting from `axis` on."""
