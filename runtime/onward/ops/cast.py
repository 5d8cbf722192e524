from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Array, Builder, Expression, Op, dtype_of, is_float, numpy_dtype, op, requests
from onward.graph.requests import Static, Values


@op("Cast", since=(6, 9, 13, 19, 21, 23, 24, 25, 28))
class Cast(Op):
    """input in another element type."""

    to: int
    saturate: int = 1
    round_mode: str = "up"

    def kernel(self, input: Array) -> Array:
        return converted(input, self.to, saturate=bool(self.saturate), round_mode=self.round_mode)

    def element(self, input: Expression) -> Expression:
        return converted_element(input, self.to)

    def lower(self, static: Static, outputs: Values, input: ir.Value) -> requests.Convert:
        return requests.Convert(outputs[0], input, self.kernel)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value | None, ...]:
        return (converted_back(g, dy, input),)


@op("Cast", since=1)
class Cast1(Op):
    """Cast that names the element type in words."""

    to: str

    def canonical(self, g: Builder, input: ir.Value) -> ir.Value:
        try:
            target = ir.DataType[self.to.upper()]
        except KeyError:
            raise InvalidModelError(f"there is no element type {self.to!r}") from None
        return g.Cast(input, to=int(target))


def converted_back(g: Builder, dy: ir.Value, x: ir.Value) -> ir.Value | None:
    """The gradient of a conversion of x; None where x is not floating point."""
    return g.Cast(dy, to=int(dtype_of(x))) if is_float(x) else None


def converted_element(x: Expression, to: int) -> Expression:
    """A float or a truth value as one or the other."""
    if to == ir.DataType.BOOL:
        return x if x.truth else x.apply("ne", 0.0)
    return x.apply("float") if x.truth else x


def converted(x: Array, to: int, *, saturate: bool = True, round_mode: str = "up") -> Array:
    """x in the element type that `to` numbers, as the specification of Cast says."""
    target = ir.DataType(to)
    dtype = numpy_dtype(target)
    if x.dtype == dtype:
        return x
    if target == ir.DataType.STRING:
        return _as_strings(x)
    if x.dtype.kind in "OUST":
        x = np.array([float(str(s)) for s in x.reshape(-1)], np.float64).reshape(x.shape)
    if target.name.startswith(("FLOAT8", "FLOAT4")):
        if target.name == "FLOAT8E8M0":
            wide = x.astype(np.float32)
            bits = onnx.numpy_helper.to_float8e8m0(wide, saturate=saturate, round_mode=round_mode)
            return bits.astype(dtype)
        y = x.astype(np.float32).astype(dtype)
        return _saturated(x, y) if saturate else y
    return x.astype(dtype)


def _saturated(x: Array, y: Array) -> Array:
    largest = np.float32(ml_dtypes.finfo(y.dtype).max)  # type: ignore[no-untyped-call]
    wide = x.astype(np.float32)
    outside = ~np.isnan(wide) & ~np.isfinite(y.astype(np.float32))
    return np.where(outside, np.copysign(largest, wide).astype(y.dtype), y)


def _as_strings(x: Array) -> Array:
    y = np.empty(x.shape, object)
    y.reshape(-1)[:] = [str(v) for v in x.reshape(-1)]
    return y
