"""Tiny element expressions: what is computed at every element of a fused chain or of a tile's epilogue."""

from __future__ import annotations

from collections.abc import Sequence

from onward.compile.codegen import integers, math
from onward.compile.codegen.builder import Function
from onward.compile.codegen.conversions import as_stored, computed
from onward.compile.codegen.spelling import is_float
from onward.compile.codegen.values import Value
from onward.graph.expression import OPS, Expression, Number, constant, operand

__all__ = ["OPS", "Expression", "Number", "constant", "emit", "flops", "inputs_of", "operand"]

_COMPARISONS = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}
_COSTS = {"exp": 12, "log": 18, "tanh": 24, "erf": 36, "sigmoid": 15, "sqrt": 4, "rsqrt": 8, "div": 4}
_LIBRARY = ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh")
"""What the C library computes, a lane at a time."""

_COSTS |= dict.fromkeys((*_LIBRARY, "power", "fmod", "mod"), 100)


def inputs_of(outputs: Sequence[Expression]) -> int:
    """One more than the highest operand number used."""
    highest = -1
    stack = list(outputs)
    seen: set[Expression] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "operand":
            highest = max(highest, node.index)
        stack.extend(node.args)
    return highest + 1


def flops(outputs: Sequence[Expression]) -> int:
    """Arithmetic operations for one element, with shared nodes counted once."""
    total = 0
    stack = list(outputs)
    seen: set[Expression] = set()
    while stack:
        node = stack.pop()
        if node in seen or node.op in ("operand", "constant"):
            continue
        seen.add(node)
        total += _COSTS.get(node.op, 1)
        stack.extend(node.args)
    return total


def emit(f: Function, outputs: Sequence[Expression], operands: Sequence[Value]) -> list[Value]:
    """Generate the expressions on vectors (or scalars); shared nodes are computed once."""
    type_ = operands[0].type if operands else f.vector
    memo: dict[Expression, Value] = {}

    def visit(node: Expression) -> Value:
        if node not in memo:
            memo[node] = _emit_one(f, node, [visit(a) for a in node.args], operands, type_)
        return memo[node]

    return [visit(node) for node in outputs]


def _emit_one(
    f: Function, node: Expression, args: list[Value], operands: Sequence[Value], type_: str
) -> Value:
    op = node.op
    if not is_float(type_) and (found := integers.emit(f, node, args, type_)) is not None:
        return found
    match op:
        case "operand":
            return operands[node.index]
        case "constant":
            return f.value(node.value, type_)
        case "add" | "sub" | "mul" | "div":
            return f.binary(op, args[0], args[1])
        case "min":
            return f.minimum(args[0], args[1])
        case "max":
            return f.maximum(args[0], args[1])
        case "lt" | "le" | "gt" | "ge" | "eq" | "ne":
            return f.compare(_COMPARISONS[op], args[0], args[1])
        case "and" | "or":
            return f.binary(op, args[0], args[1])
        case "not":
            return f.binary("xor", args[0], f.value(1, args[0].type))
        case "select":
            return f.select(args[0], args[1], args[2])
        case "float":
            return f.select(args[0], f.value(1.0, type_), f.value(0.0, type_))
        case "float16" | "bfloat16":
            return computed(f, as_stored(f, args[0], op), op, f.float)
        case "neg":
            return f.neg(args[0])
        case "abs":
            return f.abs(args[0])
        case "sign":
            x = args[0]
            zero = f.value(0.0, type_)
            positive = f.select(f.compare("ogt", x, zero), f.value(1.0, type_), x)
            return f.select(f.compare("olt", x, zero), f.value(-1.0, type_), positive)
        case "sqrt":
            return f.sqrt(args[0])
        case "reciprocal":
            return 1.0 / args[0]
        case "relu":
            return f.relu(args[0])
        case "floor" | "ceil":
            return f.intrinsic(op, type_, args)
        case "round":
            return f.intrinsic("roundeven", type_, args)
        case "exp":
            return math.exp(f, args[0])
        case "log":
            return math.log(f, args[0])
        case "tanh":
            return math.tanh(f, args[0])
        case "erf":
            return math.erf(f, args[0])
        case "sigmoid":
            return math.sigmoid(f, args[0])
        case "rsqrt":
            return math.rsqrt(f, args[0])
        case "pow":
            return _power(f, args[0], node.value, type_)
        case "power":
            return math.by_lane(f, "pow", args)
        case "fmod":
            return math.by_lane(f, "fmod", args)
        case "mod":
            return _modulo(f, args[0], args[1])
        case _ if op in _LIBRARY:
            return math.by_lane(f, op, args)
    raise ValueError(f"element operation {op!r} is not known: choose one of {', '.join(OPS)}")


def _modulo(f: Function, a: Value, b: Value) -> Value:
    """The remainder with b's sign, a zero too."""
    rest = math.by_lane(f, "fmod", [a, b])
    zero = f.value(0.0, rest.type)
    opposite = f.binary("xor", f.compare("olt", b, zero), f.compare("olt", rest, zero))
    moved = f.select(opposite, rest + b, rest)
    return f.select(f.compare("oeq", rest, zero), f.copysign(zero, b), moved)


def _power(f: Function, x: Value, exponent: float, type_: str) -> Value:
    if exponent == 0.5:
        return f.sqrt(x)
    if exponent == -0.5:
        return math.rsqrt(f, x)
    if exponent == int(exponent) and abs(exponent) <= 64:
        result: Value | None = None
        square, n = x, abs(int(exponent))
        while n:
            if n & 1:
                result = square if result is None else result * square
            n >>= 1
            if n:
                square = square * square
        if result is None:
            return f.value(1.0, type_)
        return 1.0 / result if exponent < 0 else result
    if exponent == int(exponent):  # many factors; negative numbers have powers too
        size = math.exp(f, math.log(f, f.intrinsic("fabs", type_, [x])) * exponent)
        return f.intrinsic("copysign", type_, [size, x]) if int(exponent) % 2 else size
    # A negative base has no real power with a broken exponent: the logarithm's NaN says so.
    return math.exp(f, math.log(f, x) * exponent)
