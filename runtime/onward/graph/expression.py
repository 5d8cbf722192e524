"""Expressions of single elements: how an element-wise operator tells the compiler what it computes.

An operator's `element(self, *operands)` gives an expression of its operands; the compiler fuses chains of
them into one pass over memory. The trees are plain data: this module knows nothing of code generation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["OPS", "Expression", "Number", "constant", "operand", "whole"]

OPS: dict[str, int] = {
    "add": 2,
    "sub": 2,
    "mul": 2,
    "div": 2,
    "min": 2,
    "max": 2,
    "lt": 2,
    "le": 2,
    "gt": 2,
    "ge": 2,
    "eq": 2,
    "ne": 2,
    "and": 2,
    "or": 2,
    "not": 1,
    "select": 3,
    "neg": 1,
    "abs": 1,
    "sign": 1,
    "exp": 1,
    "log": 1,
    "sqrt": 1,
    "rsqrt": 1,
    "reciprocal": 1,
    "tanh": 1,
    "erf": 1,
    "sigmoid": 1,
    "relu": 1,
    "floor": 1,
    "ceil": 1,
    "round": 1,
    "pow": 1,
    "float": 1,
    "float16": 1,
    "bfloat16": 1,
    "power": 2,
    "mod": 2,
    "fmod": 2,
    "bitand": 2,
    "bitor": 2,
    "bitxor": 2,
    "bitnot": 1,
    "shl": 2,
    "shr": 2,
    "sin": 1,
    "cos": 1,
    "tan": 1,
    "asin": 1,
    "acos": 1,
    "atan": 1,
    "sinh": 1,
    "cosh": 1,
    "asinh": 1,
    "acosh": 1,
    "atanh": 1,
}
"""Operations and their number of operands. Comparisons and logic give truth values, `select` takes one first,
`float` turns one into 1 or 0; `float16` and `bfloat16` round to these. `pow` raises to the constant `value`,
`power` to its second argument. `mod` has the sign of its second argument, `fmod` that of its first. Of
integers, `div` rounds towards zero, and it and the remainders by 0 are 0; powers below 0 are those of floats,
towards zero; bits shifted by as many as there are, or more, are gone."""

_OF_FLOATS = frozenset(
    [
        "float16",
        "bfloat16",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "tanh",
        "erf",
        "sigmoid",
        "floor",
        "ceil",
        "round",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "asinh",
        "acosh",
        "atanh",
    ]
)

_TRUTHS = frozenset(("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"))


@dataclass(frozen=True)
class Expression:
    """A node: an operation on arguments, a constant (`op="constant"`) or operand number `index`."""

    op: str
    args: tuple[Expression, ...] = ()
    value: float = 0.0
    index: int = 0

    def __add__(self, other: Number) -> Expression:
        return Expression("add", (self, _expression(other)))

    def __radd__(self, other: Number) -> Expression:
        return Expression("add", (_expression(other), self))

    def __sub__(self, other: Number) -> Expression:
        return Expression("sub", (self, _expression(other)))

    def __rsub__(self, other: Number) -> Expression:
        return Expression("sub", (_expression(other), self))

    def __mul__(self, other: Number) -> Expression:
        return Expression("mul", (self, _expression(other)))

    def __rmul__(self, other: Number) -> Expression:
        return Expression("mul", (_expression(other), self))

    def __truediv__(self, other: Number) -> Expression:
        return Expression("div", (self, _expression(other)))

    def __rtruediv__(self, other: Number) -> Expression:
        return Expression("div", (_expression(other), self))

    def __neg__(self) -> Expression:
        return Expression("neg", (self,))

    def apply(self, op: str, *others: Number) -> Expression:
        """Any operation with this as its first argument."""
        return Expression(op, (self, *(_expression(o) for o in others)))

    @property
    def truth(self) -> bool:
        """Whether it is a truth value instead of a number."""
        return self.op in _TRUTHS or (self.op == "select" and self.args[1].truth)

    def expm1(self) -> Expression:
        """e**self - 1 to a few units in the last place, for what is at most 0."""
        half = (self * 0.5).apply("tanh")
        return half * 2.0 / (1.0 - half)

    def softplus(self) -> Expression:
        """log(1 + e**self) to a few units in the last place."""
        small = (-self.apply("abs")).apply("exp")
        above = small + 1.0
        # What 1 + small was rounded by cancels: Kahan's form of log1p.
        rest = above.apply("log") * (small / (above - 1.0))
        return self.apply("relu") + above.apply("eq", 1.0).apply("select", small, rest)

    def power(self, exponent: float) -> Expression:
        """This to a constant power."""
        return Expression("pow", (self,), exponent)


Number: TypeAlias = "Expression | float | int"


def _expression(x: Number) -> Expression:
    return x if isinstance(x, Expression) else constant(float(x))


def constant(value: float) -> Expression:
    """A constant, in the element type of what it meets; an int is exact."""
    return Expression("constant", value=value)


def operand(index: int) -> Expression:
    """The element of operand number `index`."""
    return Expression("operand", index=index)


def whole(expression: Expression) -> bool:
    """Whether an expression is arithmetic of integers, given integers and truth values.

    Limits may be any number: `min` and `max` with one that no integer reaches give the other argument.
    """
    if expression.op in _OF_FLOATS:
        return False
    if expression.op == "pow" and not (expression.value >= 0 and expression.value == int(expression.value)):
        return False
    if expression.op == "constant":
        return math.isfinite(expression.value) and expression.value == int(expression.value)
    if expression.op in ("min", "max"):
        return all(a.op == "constant" or whole(a) for a in expression.args)
    return all(whole(a) for a in expression.args)
