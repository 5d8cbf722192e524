"""How LLVM spells types and constants."""

from __future__ import annotations

import struct

__all__ = ["FLOATS", "INTEGERS", "alignment", "element_of", "float_literal", "is_float", "suffix"]

INTEGERS = frozenset(("i1", "i8", "i16", "i32", "i64"))
FLOATS = ("float", "double")

_ALIGNMENTS = {"i8": 1, "i16": 2, "i32": 4, "float": 4, "i64": 8, "ptr": 8, "double": 8}


def float_literal(x: float, type_: str = "float") -> str:
    """The LLVM spelling of a constant, rounded to its type: float or double."""
    if type_ == "float":
        x = struct.unpack("<f", struct.pack("<f", x))[0]
    bits = struct.unpack("<Q", struct.pack("<d", x))[0]
    return f"0x{bits:016X}"


def is_float(type_: str) -> bool:
    """Whether an LLVM type is a floating-point number or a vector of them."""
    return type_.rstrip(">").endswith(FLOATS)


def element_of(type_: str) -> str:
    """The type of a vector's elements."""
    return type_.split(" x ")[1][:-1]


def suffix(type_: str) -> str:
    """The end of an intrinsic's name that is overloaded on a type."""
    if type_.startswith("<"):
        count, element = type_[1:-1].split(" x ")
        return f"v{count}{suffix(element)}"
    return {"float": "f32", "double": "f64"}.get(type_, type_)


def alignment(type_: str) -> int:
    """Bytes of which the address of an element is a multiple."""
    return _ALIGNMENTS.get(type_, 4)
