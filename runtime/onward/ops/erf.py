from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import is_integer, widened

# W. J. Cody, Rational Chebyshev Approximations for the Error Function, Math. Comp. 23 (1969) 631-637:
# erf(x) = x · A(x²) / B(x²) for |x| < 0.46875, else 1 - exp(-x²) · C(|x|) / D(|x|). Highest power first.
_A = (
    1.85777706184603153e-1,
    3.16112374387056560e0,
    1.13864154151050156e2,
    3.77485237685302021e2,
    3.20937758913846947e3,
)
_B = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
_C = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e0,
    6.61191906371416295e1,
    2.98635138197400131e2,
    8.81952221241769090e2,
    1.71204761263407058e3,
    2.05107837782607147e3,
    1.23033935479799725e3,
)
_D = (
    1.0,
    1.57449261107098347e1,
    1.17693950891312499e2,
    5.37181101862009858e2,
    1.62138957456669019e3,
    3.29079923573345963e3,
    4.36261909014324716e3,
    3.43936767414372164e3,
    1.23033935480374942e3,
)


_BLOCK = 16384
"""Elements taken together: the intermediate results stay in cache."""


def erf(x: Array) -> Array:
    """2/√π · ∫₀ˣ exp(-t²) dt of float32 or float64, to a few units in the last place."""
    flat = np.ravel(x)
    y = np.empty_like(flat)
    for start in range(0, flat.size, _BLOCK):
        y[start : start + _BLOCK] = _erf(flat[start : start + _BLOCK])
    return y.reshape(x.shape)


def _erf(x: Array) -> Array:
    size = np.abs(x)
    square = size * size
    near = size * _polynomial(_A, square) / _polynomial(_B, square)
    size = np.minimum(size, 6)  # where erf is 1 in float64
    far = 1 - np.exp(-size * size) * _polynomial(_C, size) / _polynomial(_D, size)
    return np.copysign(np.where(size < 0.46875, near, far), x)


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    y = coefficients[0] * x
    for c in coefficients[1:-1]:
        y += c
        y *= x
    y += coefficients[-1]
    return y


@op("Erf", since=(9, 13))
class Erf(Op):
    """The error function."""

    def kernel(self, input: Array) -> Array:
        if is_integer(input):
            return erf(input.astype(np.float64)).astype(input.dtype)
        return self._float_kernel(input)

    @widened
    def _float_kernel(self, x: Array) -> Array:
        return erf(x)

    def element(self, input: Expression) -> Expression:
        return input.apply("erf")

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        input: ir.Value,
    ) -> tuple[ir.Value, ...]:
        slope = g.Mul(g.Exp(g.Neg(g.Mul(input, input))), 2 / math.sqrt(math.pi))
        return (g.Mul(dy, slope),)
