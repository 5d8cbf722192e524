"""Elementary functions on vectors (or scalars), as polynomials in generated code.

Coefficients are least-maximum-error fits made for this module; relative errors are a few units in the last
place of float32. NaN gives NaN, infinities give their limits, and results below the normal range are
denormals where NumPy gives denormals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onward.compile.codegen.builder import Function, Value

__all__ = [
    "Fraction",
    "erf",
    "exp",
    "log",
    "polynomial",
    "quotients",
    "rsqrt",
    "sigmoid",
    "sigmoid_fraction",
    "tanh",
    "tanh_fraction",
]

_LN2_HIGH = 0.693145751953125  # 16 bits: its product with a small integer is exact
_LN2_LOW = 1.428606820309417e-06
_ROUND = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer, which then sits in the low mantissa bits
_EXP = (
    0.4999999305049196,
    0.1666651478911707,
    0.04166845683309649,
    0.008369419043618292,
    0.0013813142368115734,
)
_LOG = (
    0.33333312602801574,
    -0.25000009603665535,
    0.20002118732285135,
    -0.16667995666579832,
    0.1421955090629295,
    -0.12405591424478093,
    0.11888174618901118,
    -0.11675641269662623,
    0.06746601244039667,
)
_TANH = (
    -0.33333329849140125,
    0.13333187287021347,
    -0.0539451877794168,
    0.021694235883086787,
    -0.008164600371777353,
    0.0021331840011660575,
)
_TANH_NUMERATOR = (
    0.9999999833273531,
    0.12984920388802465,
    0.002992108363527176,
    9.939283499766368e-06,
    -1.4906507553660777e-08,
    2.41058024835456e-11,
)
_TANH_DENOMINATOR = (1.0, 0.4631823833831855, 0.024053140254437916, 0.00023808835464632515)
_TANH_LIMIT = 7.9
_SIGMOID_LIMIT = 29.0  # the product of two denominators and that of tanh has an inverse
_ERF_SMALL = (
    1.1283791670631578,
    -0.3761263848380937,
    0.11283782747207928,
    -0.026865445821891334,
    0.00522107487960393,
    -0.0008484711472672645,
    0.00011270544671364257,
    -9.680136941823126e-06,
)
_ERF_LARGE = (
    -8.594130751975908e-05,
    1.128979720687342,
    0.6347535727664573,
    0.10616732106573398,
    -0.02312264089264086,
    0.0029406027135275457,
    5.953080464677518e-05,
    -0.00010340769670760932,
    1.7862513953787585e-05,
    -1.1107764173846511e-06,
)


def polynomial(f: Function, x: Value, coefficients: Sequence[float]) -> Value:
    """Sum of coefficients[i] * x**i by Horner's rule."""
    value = f.value(coefficients[-1], x.type)
    for c in reversed(coefficients[:-1]):
        value = f.fma(value, x, c)
    return value


def _integer_type(x: Value) -> str:
    return x.type.replace("float", "i32")


def _clamp(f: Function, x: Value, low: float, high: float) -> Value:
    """Into [low, high]; NaN stays."""
    x = f.select(f.compare("olt", x, low), low, x)
    return f.select(f.compare("ogt", x, high), high, x)


def exp(f: Function, x: Value) -> Value:
    """e**x. 2**n is applied in two halves, so that results come out denormal or infinite by themselves."""
    integer = _integer_type(x)
    x = _clamp(f, x, -105.0, 89.5)
    shifted = f.exact("fadd", f.exact("fmul", x, math.log2(math.e)), _ROUND)
    n = f.exact("fsub", shifted, _ROUND)
    r = f.fma(n, -_LN2_LOW, f.fma(n, -_LN2_HIGH, x))
    value = f.fma(f.fma(polynomial(f, r, _EXP), r * r, r), 1.0, 1.0)
    bits = f.binary("sub", f.bitcast(shifted, integer), f.bitcast(f.value(_ROUND, x.type), integer))
    half = f.binary("ashr", bits, 1)
    rest = f.binary("sub", bits, half)
    for part in (half, rest):
        exponent = f.binary("shl", f.binary("add", part, 127), 23)
        value = value * f.bitcast(exponent, x.type)
    return value


def log(f: Function, x: Value) -> Value:
    """Natural logarithm: -inf at zero, NaN below it."""
    integer = _integer_type(x)
    tiny = f.compare("olt", x, 1.1754943508222875e-38)
    scaled = f.select(tiny, f.exact("fmul", x, 2.0**24), x)
    bits = f.bitcast(scaled, integer)
    # Splitting off the exponent relative to sqrt(1/2) leaves a mantissa in [sqrt(1/2), sqrt(2)).
    offset = f.binary("sub", bits, 0x3F3504F3)
    exponent = f.cast("sitofp", f.binary("ashr", offset, 23), x.type)
    exponent = exponent + f.select(tiny, f.value(-24.0, x.type), f.value(0.0, x.type))
    mantissa = f.bitcast(f.binary("add", f.binary("and", offset, 0x007FFFFF), 0x3F3504F3), x.type)
    r = mantissa - 1.0
    square = r * r
    tail = f.fma(polynomial(f, r, _LOG), square * r, square * -0.5)
    value = f.fma(exponent, _LN2_HIGH, f.fma(exponent, _LN2_LOW, tail) + r)
    value = f.select(f.compare("olt", x, math.inf), value, x)  # inf and NaN
    value = f.select(f.compare("oeq", x, 0.0), f.value(-math.inf, x.type), value)
    return f.select(f.compare("olt", x, 0.0), f.value(math.nan, x.type), value)


def sigmoid(f: Function, x: Value) -> Value:
    """1 / (1 + e**-x), written so that both tails keep their relative accuracy."""
    e = exp(f, f.neg(f.abs(x)))
    numerator = f.select(f.compare("olt", x, 0.0), e, f.value(1.0, x.type))
    return numerator / (e + 1.0)


def tanh(f: Function, x: Value) -> Value:
    """Hyperbolic tangent: an odd polynomial below 0.625, else 1 - 2 / (e**2|x| + 1)."""
    magnitude = f.abs(x)
    square = x * x
    small = f.fma(polynomial(f, square, _TANH) * square, x, x)
    large = 1.0 - 2.0 / (exp(f, magnitude + magnitude) + 1.0)
    return f.select(f.compare("olt", magnitude, 0.625), small, f.copysign(large, x))


Fraction = tuple[Value, Value]


def sigmoid_fraction(f: Function, x: Value) -> Fraction:
    """1 / (1 + e**-x) as numerator and denominator, in [2.5e-13, 1]."""
    integer = _integer_type(x)
    x = f.neg(_clamp(f, x, -_SIGMOID_LIMIT, _SIGMOID_LIMIT))
    shifted = f.exact("fadd", f.exact("fmul", x, math.log2(math.e)), _ROUND)
    n = f.exact("fsub", shifted, _ROUND)
    r = f.fma(n, -_LN2_LOW, f.fma(n, -_LN2_HIGH, x))
    value = f.fma(f.fma(polynomial(f, r, _EXP), r * r, r), 1.0, 1.0)
    bits = f.binary("sub", f.bitcast(shifted, integer), f.bitcast(f.value(_ROUND, x.type), integer))
    exponent = f.binary("shl", f.binary("add", bits, 127), 23)
    return f.value(1.0, x.type), f.fma(value, f.bitcast(exponent, x.type), 1.0)


def tanh_fraction(f: Function, x: Value) -> Fraction:
    """The hyperbolic tangent as numerator and denominator, within 4e-7 relative, never beyond ±1."""
    x = _clamp(f, x, -_TANH_LIMIT, _TANH_LIMIT)
    square = x * x
    return polynomial(f, square, _TANH_NUMERATOR) * x, polynomial(f, square, _TANH_DENOMINATOR)


def quotients(f: Function, fractions: Sequence[Fraction]) -> list[Value]:
    """The values of up to three fractions by one division, which rounds more: where one is NaN, all are."""
    if len(fractions) == 1:
        ((numerator, denominator),) = fractions
        return [numerator / denominator]
    (a, p), (b, q), *rest = fractions
    if not rest:
        inverse = 1.0 / (p * q)
        return [a * q * inverse, b * p * inverse]
    ((c, r),) = rest
    pair = p * q
    inverse = 1.0 / (pair * r)
    first = r * inverse
    return [a * q * first, b * p * first, c * pair * inverse]


def erf(f: Function, x: Value) -> Value:
    """Error function: an odd polynomial below 1, else 1 - e**-q(|x|) with q fitted to -log(erfc)."""
    magnitude = f.abs(x)
    small = polynomial(f, x * x, _ERF_SMALL) * x
    bounded = f.select(f.compare("ogt", magnitude, 4.0), f.value(4.0, x.type), magnitude)
    large = 1.0 - exp(f, f.neg(polynomial(f, bounded, _ERF_LARGE)))
    return f.select(f.compare("olt", magnitude, 1.0), small, f.copysign(large, x))


def rsqrt(f: Function, x: Value) -> Value:
    """1 / sqrt(x), each correctly rounded."""
    return 1.0 / f.sqrt(x)
