"""Elements as they are stored and as they are computed with, and any number as one of another type."""

from __future__ import annotations

import math

from onward.compile.codegen.builder import Function
from onward.compile.codegen.spelling import is_float
from onward.compile.codegen.values import Value

__all__ = ["STORAGE", "as_stored", "computed", "converted"]

STORAGE = {
    "float32": ("float", 4),
    "float64": ("double", 8),
    "float16": ("i16", 2),
    "bfloat16": ("i16", 2),
    "bool": ("i8", 1),
    **{f"{sign}int{8 * n}": (f"i{8 * n}", n) for n in (1, 2, 4, 8) for sign in ("", "u")},
}
"""LLVM's type and the bytes of stored elements."""


def _like(x: Value, element: str) -> str:
    """A type for as many elements as x has."""
    return f"{x.type.split(' x ')[0]} x {element}>" if x.type.startswith("<") else element


def computed(f: Function, x: Value, dtype: str, wanted: str) -> Value:
    """Stored elements of a type as LLVM's `wanted`: a float, or an integer of the same width or for truth.

    Args:
        f: the function.
        x: what was loaded, as `STORAGE` says.
        dtype: NumPy's name of the type.
        wanted: a scalar type.
    """
    if dtype in ("float16", "bfloat16"):
        if dtype == "float16":
            half = f.bitcast(x, _like(x, "half"))
            wide = f.cast("fpext", half, _like(x, "float"))
        else:
            bits = f.binary("shl", f.cast("zext", x, _like(x, "i32")), 16)
            wide = f.bitcast(bits, _like(x, "float"))
        return wide if wanted == "float" else f.cast("fpext", wide, _like(x, wanted))
    type_, _ = STORAGE[dtype]
    if type_ == wanted:
        return x
    if is_float(type_):
        return f.cast("fpext" if wanted == "double" else "fptrunc", x, _like(x, wanted))
    signed = not dtype.startswith("u") and dtype != "bool"
    if is_float(wanted):
        return f.cast("sitofp" if signed else "uitofp", x, _like(x, wanted))
    narrower = STORAGE[dtype][1] * 8 > int(wanted[1:])
    return f.cast("trunc" if narrower else "sext" if signed else "zext", x, _like(x, wanted))


def as_stored(f: Function, x: Value, dtype: str) -> Value:
    """A float or double as stored 2-byte floats, rounded to the nearest, ties to even."""
    if dtype == "float16":
        if x.type.rstrip(">").endswith("double"):
            x = _to_odd(f, x)
        return f.bitcast(f.cast("fptrunc", x, _like(x, "half")), _like(x, "i16"))
    if x.type.rstrip(">").endswith("double"):
        x = f.cast("fptrunc", x, _like(x, "float"))
    bits = f.bitcast(x, _like(x, "i32"))
    odd = f.binary("and", f.binary("lshr", bits, 16), 1)
    rounded = f.binary("lshr", f.binary("add", bits, f.binary("add", odd, 0x7FFF)), 16)
    sign = f.binary("and", f.binary("lshr", bits, 16), 0x8000)
    stored = f.select(f.compare("uno", x, x), f.binary("or", sign, 0x7FC0), rounded)
    return f.cast("trunc", stored, _like(x, "i16"))


def _to_odd(f: Function, x: Value) -> Value:
    """A double as a float that rounds on to the same half: inexact ones towards zero, their last bit set."""
    near = f.cast("fptrunc", x, _like(x, "float"))
    back = f.cast("fpext", near, x.type)
    bits = f.bitcast(near, _like(x, "i32"))
    above = f.cast("zext", f.compare("ogt", f.abs(back), f.abs(x)), bits.type)
    odd = f.binary("or", f.binary("sub", bits, above), 1)
    return f.bitcast(f.select(f.compare("one", back, x), odd, bits), near.type)


def converted(f: Function, x: Value, source: str, target: str) -> Value:
    """Stored elements of a type as stored elements of another, as NumPy converts on x86.

    Integers wrap. Floats that a 32-bit integer, or a 64-bit one for those of 32 bits without sign and of 64
    bits, cannot hold are its smallest number, of which narrower types keep the last bits.
    """
    if source == target:
        return x
    if target == "bool":
        wide = x if STORAGE[source][0] in ("float", "double") else None
        if wide is None and source in ("float16", "bfloat16"):
            wide = computed(f, x, source, "float")
        nonzero = f.compare("ne", x, 0) if wide is None else f.compare("une", wide, 0.0)
        return f.cast("zext", nonzero, _like(x, "i8"))
    floating = source in ("float16", "bfloat16", "float32", "float64")
    wanted, _ = STORAGE[target]
    if target in ("float16", "bfloat16"):
        exact = "double" if STORAGE[source][1] == 8 or (not floating and STORAGE[source][1] == 4) else "float"
        if target == "bfloat16" and source != "float64":
            exact = "float"
        return as_stored(f, computed(f, x, source, exact), target)
    if is_float(wanted) or not floating:
        return computed(f, x, source, wanted)
    number = computed(f, x, source, "double" if source == "float64" else "float")
    if target == "uint64":
        return _unsigned(f, number)
    through = 64 if target in ("uint32", "int64") else 32
    whole = _signed(f, number, through)
    bits = 8 * STORAGE[target][1]
    return whole if bits == through else f.cast("trunc", whole, _like(x, f"i{bits}"))


def _signed(f: Function, x: Value, bits: int) -> Value:
    """Towards zero; the smallest integer for what does not fit, NaN included."""
    limit = math.ldexp(1.0, bits - 1)
    fits = f.binary("and", f.compare("oge", x, -limit), f.compare("olt", x, limit))
    near = f.select(fits, x, f.zero(x.type) if x.type.startswith("<") else f.value(0.0, x.type))
    whole = f.cast("fptosi", near, _like(x, f"i{bits}"))
    return f.select(fits, whole, f.value(-(1 << (bits - 1)), whole.type))


def _unsigned(f: Function, x: Value) -> Value:
    """Towards zero as an unsigned 64-bit integer, by way of signed ones as compilers do it."""
    limit = math.ldexp(1.0, 63)
    high = _signed(f, f.binary("sub", x, limit), 64)
    flipped = f.binary("xor", high, f.value(-(1 << 63), high.type))
    return f.select(f.compare("oge", x, limit), flipped, _signed(f, x, 64))
