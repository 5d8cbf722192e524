"""Expressions of elements in integer arithmetic: numbers wrap, and no operand is refused."""

from __future__ import annotations

from onward.compile.codegen.builder import Function
from onward.compile.codegen.values import Value
from onward.graph.expression import Expression

__all__ = ["emit"]

_BITS = {"bitand": "and", "bitor": "or", "bitxor": "xor"}


def emit(f: Function, node: Expression, args: list[Value], type_: str) -> Value | None:
    """What a node is of integers in vectors of `type_`; None where truth values make no difference."""
    signed = f.module.target.element.signed
    sign = "s" if signed else "u"
    bits = 8 * f.module.target.element.nbytes
    match node.op:
        case "constant":
            return f.value(_nearest(node.value, bits, signed), type_)
        case "add" | "sub" | "mul":
            return f.binary(node.op, args[0], args[1])
        case "min" | "max":
            predicate = f"{sign}{'lt' if node.op == 'min' else 'gt'}"
            return f.select(f.compare(predicate, args[0], args[1]), args[0], args[1])
        case "lt" | "le" | "gt" | "ge":
            return f.compare(f"{sign}{node.op}", args[0], args[1])
        case "eq" | "ne":
            return f.compare(node.op, args[0], args[1])
        case "float":
            return f.cast("zext", args[0], type_)
        case "neg":
            return f.binary("sub", f.zero(type_), args[0])
        case "bitnot":
            return f.binary("xor", args[0], -1)
        case "abs":
            negative = f.compare("slt", args[0], 0)
            return f.select(negative, f.binary("sub", f.zero(type_), args[0]), args[0]) if signed else args[0]
        case "sign":
            above = f.cast("zext", f.compare("ne", args[0], 0), type_)
            return f.select(f.compare("slt", args[0], 0), f.value(-1, type_), above) if signed else above
        case "relu":
            return f.select(f.compare("slt", args[0], 0), f.zero(type_), args[0]) if signed else args[0]
        case "div" | "mod" | "fmod":
            return _divided(f, node.op, args[0], args[1], sign)
        case "pow":
            return _power(f, args[0], f.value(int(node.value), type_), bits, signed)
        case "power":
            return _power(f, args[0], args[1], bits, signed)
        case "shl" | "shr":
            return _shifted(f, node.op, args[0], args[1], bits, signed)
        case op if op in _BITS:
            return f.binary(_BITS[op], args[0], args[1])
    return None


def _nearest(value: float, bits: int, signed: bool) -> int:
    """A limit as an integer of the type: beyond its range, the end of that."""
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return low if value <= low else high if value >= high else int(value)


def _divided(f: Function, op: str, a: Value, b: Value, sign: str) -> Value:
    """The quotient or a remainder: 0 by 0; the smallest number by -1 is itself."""
    zero = f.zero(a.type)
    none = f.compare("eq", b, 0)
    if sign == "u":
        safe = f.select(none, f.value(1, a.type), b)
        found = f.binary("udiv" if op == "div" else "urem", a, safe)
        return f.select(none, zero, found)
    back = f.compare("eq", b, -1)
    safe = f.select(f.binary("or", none, back), f.value(1, a.type), b)
    if op == "div":
        found = f.select(back, f.binary("sub", zero, a), f.binary("sdiv", a, safe))
        return f.select(none, zero, found)
    rest = f.binary("srem", a, safe)
    if op == "mod":
        opposite = f.compare("slt", f.binary("xor", rest, safe), 0)
        other = f.compare("ne", rest, 0)
        rest = f.select(f.binary("and", opposite, other), f.binary("add", rest, safe), rest)
    return f.select(f.binary("or", none, back), zero, rest)


def _shifted(f: Function, op: str, a: Value, b: Value, bits: int, signed: bool) -> Value:
    """Bits moved; a shift by as many as there are, or more, leaves none but those of the sign."""
    near = f.compare("ult", b, bits)
    by = f.select(near, b, f.zero(b.type))
    if op == "shl":
        return f.select(near, f.binary("shl", a, by), f.zero(a.type))
    if not signed:
        return f.select(near, f.binary("lshr", a, by), f.zero(a.type))
    return f.binary("ashr", a, f.select(near, b, f.value(bits - 1, b.type)))


def _power(f: Function, a: Value, exponent: Value, bits: int, signed: bool) -> Value:
    """By squares; below 0 what 1 / a^-exponent is towards zero, of 0 what infinity becomes."""

    def step(_: Value, carry: list[Value]) -> list[Value]:
        product, square, rest = carry
        odd = f.compare("ne", f.binary("and", rest, 1), 0)
        product = f.select(odd, f.binary("mul", product, square), product)
        return [product, f.binary("mul", square, square), f.binary("lshr", rest, f.value(1, rest.type))]

    one = f.value(1, a.type)
    positive, _, _ = f.loop(0, bits, carry=[one, a, exponent], body=step)
    if not signed:
        return positive
    odd = f.compare("ne", f.binary("and", exponent, 1), 0)
    infinite = f.value(-(1 << (bits - 1)) if bits >= 32 else 0, a.type)
    small = f.select(f.compare("eq", a, 0), infinite, f.zero(a.type))
    small = f.select(f.compare("eq", a, -1), f.select(odd, f.value(-1, a.type), one), small)
    small = f.select(f.compare("eq", a, 1), one, small)
    return f.select(f.compare("slt", exponent, 0), small, positive)
