"""Elementary functions on vectors (or scalars) of floats or doubles, as polynomials in generated code.

Coefficients for floats are least-maximum-error fits made for this module; those for doubles are fdlibm's
(Sun Microsystems 1993: e_exp.c, e_log.c) and those of the Cephes library (S. L. Moshier 1984-2000: tanh.c,
ndtr.c). Relative errors are a few units in the last place of the type. NaN gives NaN, infinities give their
limits, and results below the normal range are denormals where NumPy gives denormals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onward.compile.codegen.builder import Function
from onward.compile.codegen.values import Value

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


@dataclass(frozen=True)
class _Format:
    """A floating-point type.

    Attributes:
        integer: LLVM's type of as many bits.
        mantissa: bits that are stored of it; `bias` is the exponent's.
        round: 1.5 * 2**mantissa. Adding it rounds to an integer, which then sits in the low mantissa bits.
        ln2_high: some bits of log 2, so that its product with a small integer is exact; `ln2_low` the rest.
        exp_low, exp_high: where e**x has long become 0 and infinity.
        normal: the smallest normal number; `root` are the bits of sqrt(1/2).
    """

    integer: str
    mantissa: int
    bias: int
    round: float
    ln2_high: float
    ln2_low: float
    exp_low: float
    exp_high: float
    normal: float
    root: int


_SINGLE = _Format(
    integer="i32",
    mantissa=23,
    bias=127,
    round=12582912.0,
    ln2_high=0.693145751953125,
    ln2_low=1.428606820309417e-06,
    exp_low=-105.0,
    exp_high=89.5,
    normal=1.1754943508222875e-38,
    root=0x3F3504F3,
)

_DOUBLE = _Format(
    integer="i64",
    mantissa=52,
    bias=1023,
    round=6755399441055744.0,
    ln2_high=6.93147180369123816490e-01,
    ln2_low=1.90821492927058770002e-10,
    exp_low=-746.0,
    exp_high=710.0,
    normal=2.2250738585072014e-308,
    root=0x3FE6A09E667F3BCD,
)

_EXP_DOUBLE = (
    1.66666666666666019037e-01,
    -2.77777777770155933842e-03,
    6.61375632143793436117e-05,
    -1.65339022054652515390e-06,
    4.13813679705723846039e-08,
)
_LOG_DOUBLE = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)
_TANH_DOUBLE = (
    (-1.61468768441708447952e3, -9.92877231001918586564e1, -9.64399179425052238628e-1),
    (4.84406305325125486048e3, 2.23548839060100448583e3, 1.12811678491632931402e2, 1.0),
)
_ERF_SMALL_DOUBLE = (
    (
        5.55923013010394962768e4,
        7.00332514112805075473e3,
        2.23200534594684319226e3,
        9.00260197203842689217e1,
        9.60497373987051638749e0,
    ),
    (
        4.92673942608635921086e4,
        2.26290000613890934246e4,
        4.59432382970980127987e3,
        5.21357949780152679795e2,
        3.35617141647503099647e1,
        1.0,
    ),
)
_ERFC_DOUBLE = (
    (
        5.57535335369399327526e2,
        1.02755188689515710272e3,
        9.34528527171957607540e2,
        5.26445194995477358631e2,
        1.96520832956077098242e2,
        4.86371970985681366614e1,
        7.46321056442269912687e0,
        5.64189564831068821977e-1,
        2.46196981473530512524e-10,
    ),
    (
        5.57535340817727675546e2,
        1.65666309194161350182e3,
        2.24633760818710981792e3,
        1.82390916687909736289e3,
        9.75708501743205489753e2,
        3.54937778887819891062e2,
        8.67072140885989742329e1,
        1.32281951154744992508e1,
        1.0,
    ),
)
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
_SIGMOID_LIMIT_DOUBLE = 236.0
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


def _format(x: Value) -> _Format:
    return _DOUBLE if "double" in x.type else _SINGLE


def _integer_type(x: Value) -> str:
    return x.type.replace("double", "i64").replace("float", "i32")


def _ratio(f: Function, x: Value, fraction: tuple[Sequence[float], Sequence[float]]) -> Value:
    """One polynomial over another."""
    numerator, denominator = fraction
    return polynomial(f, x, numerator) / polynomial(f, x, denominator)


def _exp_parts(f: Function, x: Value) -> tuple[Value, Value]:
    """e**x as m * 2**n: m, and n as an integer of the type's width."""
    kind, integer = _format(x), _integer_type(x)
    shifted = f.exact("fadd", f.exact("fmul", x, math.log2(math.e)), kind.round)
    n = f.exact("fsub", shifted, kind.round)
    high = f.fma(n, -kind.ln2_high, x)
    if kind is _SINGLE:
        r = f.fma(n, -kind.ln2_low, high)
        value = f.fma(f.fma(polynomial(f, r, _EXP), r * r, r), 1.0, 1.0)
    else:
        low = n * kind.ln2_low
        r = high - low
        square = r * r
        c = r - square * polynomial(f, square, _EXP_DOUBLE)
        value = 1.0 - ((low - r * c / (2.0 - c)) - high)
    bits = f.binary("sub", f.bitcast(shifted, integer), f.bitcast(f.value(kind.round, x.type), integer))
    return value, bits


def _power_of_two(f: Function, n: Value, like: Value) -> Value:
    """2**n of an integer within the range of exponents."""
    kind = _format(like)
    return f.bitcast(f.binary("shl", f.binary("add", n, kind.bias), kind.mantissa), like.type)


def _clamp(f: Function, x: Value, low: float, high: float) -> Value:
    """Into [low, high]; NaN stays."""
    x = f.select(f.compare("olt", x, low), low, x)
    return f.select(f.compare("ogt", x, high), high, x)


def exp(f: Function, x: Value) -> Value:
    """e**x. 2**n is applied in two halves, so that results come out denormal or infinite by themselves."""
    kind = _format(x)
    value, n = _exp_parts(f, _clamp(f, x, kind.exp_low, kind.exp_high))
    half = f.binary("ashr", n, 1)
    rest = f.binary("sub", n, half)
    for part in (half, rest):
        value = value * _power_of_two(f, part, x)
    return value


def log(f: Function, x: Value) -> Value:
    """Natural logarithm: -inf at zero, NaN below it."""
    kind, integer = _format(x), _integer_type(x)
    up = kind.mantissa + 1
    tiny = f.compare("olt", x, kind.normal)
    scaled = f.select(tiny, f.exact("fmul", x, 2.0**up), x)
    bits = f.bitcast(scaled, integer)
    # Splitting off the exponent relative to sqrt(1/2) leaves a mantissa in [sqrt(1/2), sqrt(2)).
    offset = f.binary("sub", bits, kind.root)
    exponent = f.cast("sitofp", f.binary("ashr", offset, kind.mantissa), x.type)
    exponent = exponent + f.select(tiny, f.value(float(-up), x.type), f.value(0.0, x.type))
    fraction = f.binary("and", offset, (1 << kind.mantissa) - 1)
    mantissa = f.bitcast(f.binary("add", fraction, kind.root), x.type)
    r = mantissa - 1.0
    square = r * r
    if kind is _SINGLE:
        tail = f.fma(polynomial(f, r, _LOG), square * r, square * -0.5)
        value = f.fma(exponent, kind.ln2_high, f.fma(exponent, kind.ln2_low, tail) + r)
    else:
        s, half = r / (r + 2.0), square * 0.5
        z = s * s
        rest = s * f.fma(polynomial(f, z, _LOG_DOUBLE), z, half)
        value = exponent * kind.ln2_high - ((half - f.fma(exponent, kind.ln2_low, rest)) - r)
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
    if _format(x) is _SINGLE:
        small = f.fma(polynomial(f, square, _TANH) * square, x, x)
    else:
        small = f.fma(_ratio(f, square, _TANH_DOUBLE) * square, x, x)
    large = 1.0 - 2.0 / (exp(f, magnitude + magnitude) + 1.0)
    return f.select(f.compare("olt", magnitude, 0.625), small, f.copysign(large, x))


Fraction = tuple[Value, Value]


def sigmoid_fraction(f: Function, x: Value) -> Fraction:
    """1 / (1 + e**-x) as numerator and denominator; for floats in [2.5e-13, 1]."""
    limit = _SIGMOID_LIMIT if _format(x) is _SINGLE else _SIGMOID_LIMIT_DOUBLE
    value, n = _exp_parts(f, f.neg(_clamp(f, x, -limit, limit)))
    return f.value(1.0, x.type), f.fma(value, _power_of_two(f, n, x), 1.0)


def tanh_fraction(f: Function, x: Value) -> Fraction:
    """The hyperbolic tangent as numerator and denominator, never beyond ±1; for floats within 4e-7."""
    if _format(x) is _DOUBLE:
        return tanh(f, x), f.value(1.0, x.type)
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
    """Error function: an odd function below 1, else 1 - erfc(|x|), for floats with -log(erfc) fitted."""
    magnitude = f.abs(x)
    limit = 4.0 if _format(x) is _SINGLE else 6.0
    if _format(x) is _SINGLE:
        small = polynomial(f, x * x, _ERF_SMALL) * x
    else:
        small = _ratio(f, x * x, _ERF_SMALL_DOUBLE) * x
    bounded = f.select(f.compare("ogt", magnitude, limit), f.value(limit, x.type), magnitude)
    if _format(x) is _SINGLE:
        large = 1.0 - exp(f, f.neg(polynomial(f, bounded, _ERF_LARGE)))
    else:
        large = 1.0 - exp(f, f.neg(bounded * bounded)) * _ratio(f, bounded, _ERFC_DOUBLE)
    return f.select(f.compare("olt", magnitude, 1.0), small, f.copysign(large, x))


def rsqrt(f: Function, x: Value) -> Value:
    """1 / sqrt(x), each correctly rounded."""
    return 1.0 / f.sqrt(x)


def by_lane(f: Function, name: str, arguments: Sequence[Value]) -> Value:
    """A function of the C library, of each lane."""
    symbol = name if f.float == "double" else f"{name}f"
    type_ = arguments[0].type
    if not type_.startswith("<"):
        return f.call(symbol, f.float, arguments)
    found = f.zero(type_)
    for lane in range(f.lanes):
        found = f.insert(found, f.call(symbol, f.float, [f.extract(a, lane) for a in arguments]), lane)
    return found
