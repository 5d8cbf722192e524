"""SSA values and the instructions that compute them: constants, conversions, arithmetic, calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from onward.compile.codegen.spelling import FLOATS, INTEGERS, float_literal, is_float, suffix
from onward.compile.codegen.symbols import Symbols

__all__ = ["Instructions", "Int", "Operand", "Value"]

_FLAGS = "contract"


class Value:
    """An SSA value: its spelling and LLVM type. Operators emit instructions into its function."""

    __slots__ = ("function", "ref", "type")

    def __init__(self, function: Instructions, ref: str, type_: str) -> None:
        self.function = function
        self.ref = ref
        self.type = type_

    def __repr__(self) -> str:
        return f"{self.type} {self.ref}"

    def _other(self, other: Operand) -> Value:
        return self.function.value(other, self.type)

    def __add__(self, other: Operand) -> Value:
        return self.function.binary("add", self, self._other(other))

    def __radd__(self, other: Operand) -> Value:
        return self.function.binary("add", self, self._other(other))

    def __sub__(self, other: Operand) -> Value:
        return self.function.binary("sub", self, self._other(other))

    def __rsub__(self, other: Operand) -> Value:
        return self.function.binary("sub", self._other(other), self)

    def __mul__(self, other: Operand) -> Value:
        return self.function.binary("mul", self, self._other(other))

    def __rmul__(self, other: Operand) -> Value:
        return self.function.binary("mul", self, self._other(other))

    def __truediv__(self, other: Operand) -> Value:
        return self.function.binary("div", self, self._other(other))

    def __rtruediv__(self, other: Operand) -> Value:
        return self.function.binary("div", self._other(other), self)

    def __floordiv__(self, other: Operand) -> Value:
        return self.function.binary("udiv", self, self._other(other))

    def __mod__(self, other: Operand) -> Value:
        return self.function.binary("urem", self, self._other(other))


Operand = Value | int | float
Int = Value | int
"""An i64 in generated code, or a number known while generating."""


class Instructions(ABC):
    """Writes instructions in order, at the end of the current block of a function."""

    def __init__(self, module: Symbols, name: str, parameters: Sequence[tuple[str, str]]) -> None:
        self.module = module
        self.lanes = module.lanes
        self.float = module.float
        self.vector = module.vector
        self.name = name
        self.arguments = tuple(Value(self, f"%{n}", t) for n, t in parameters)
        self._lines: list[str] = []
        self._block = "entry"
        self._next = 0

    @abstractmethod
    def text(self) -> str:
        """The function definition as LLVM assembly."""

    def emit(self, line: str) -> None:
        """Write one instruction that gives no value."""
        self._lines.append("  " + line)

    def _fresh(self, hint: str = "v") -> str:
        self._next += 1
        return f"{hint}{self._next}"

    def instruction(self, type_: str, text: str) -> Value:
        """Emit an instruction that gives a value of LLVM type `type_`."""
        name = "%" + self._fresh()
        self._lines.append(f"  {name} = {text}")
        return Value(self, name, type_)

    def _start(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self._block = label

    # Constants and conversions

    def value(self, x: Operand, type_: str = "i64") -> Value:
        """`x` as a value of LLVM type `type_`; numbers become constants, floats are splat over vectors."""
        if isinstance(x, Value):
            if x.type in FLOATS and type_.endswith(f"x {x.type}>"):
                return self.splat(x)
            return x
        if type_ in INTEGERS:
            return Value(self, str(int(x)), type_)
        if type_ in FLOATS:
            return Value(self, float_literal(x, type_), type_)
        count, element = type_[1:-1].split(" x ")
        one = float_literal(x, element) if element in FLOATS else str(int(x))
        return Value(self, "<" + ", ".join([f"{element} {one}"] * int(count)) + ">", type_)

    def zero(self, type_: str | None = None) -> Value:
        """Positive zero of a type, by default the float vector."""
        return Value(self, "zeroinitializer", type_ or self.vector)

    def splat(self, x: Value) -> Value:
        """A scalar in every lane."""
        type_ = f"<{self.lanes} x {x.type}>"
        one = self.instruction(type_, f"insertelement {type_} poison, {x.type} {x.ref}, i64 0")
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        return self.instruction(type_, f"shufflevector {type_} {one.ref}, {type_} poison, {zeros}")

    def bitcast(self, x: Value, type_: str) -> Value:
        """The same bits as another type."""
        return self.instruction(type_, f"bitcast {x.type} {x.ref} to {type_}")

    def cast(self, op: str, x: Value, type_: str) -> Value:
        """A conversion instruction: trunc, zext, sext, sitofp, uitofp, fptosi, ptrtoint, inttoptr."""
        return self.instruction(type_, f"{op} {x.type} {x.ref} to {type_}")

    # Arithmetic

    def binary(self, op: str, a: Operand, b: Operand) -> Value:
        """add, sub, mul, div on floats; add, sub, mul, udiv, urem, shl, ... on integers; folds constants."""
        if not isinstance(a, Value):
            assert isinstance(b, Value)
            a = self.value(a, b.type)
        b = self.value(b, a.type)
        a = self.value(a, b.type)
        if is_float(a.type):
            return self.instruction(a.type, f"f{op} {_FLAGS} {a.type} {a.ref}, {b.ref}")
        if a.type == "i64":
            folded = _fold(op, a, b)
            if folded is not None:
                return folded if isinstance(folded, Value) else Value(self, str(folded), "i64")
        no_wrap = "nsw " if op in ("add", "sub", "mul") and a.type == "i64" else ""
        return self.instruction(a.type, f"{op} {no_wrap}{a.type} {a.ref}, {b.ref}")

    def exact(self, op: str, a: Value, b: Operand) -> Value:
        """fadd, fsub or fmul that is rounded on its own and never contracted."""
        b = self.value(b, a.type)
        return self.instruction(a.type, f"{op} {a.type} {a.ref}, {b.ref}")

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """a * b + c; fused where the target fuses, two rounded operations elsewhere."""
        type_ = self._common((a, b, c))
        return self.intrinsic(
            "fmuladd", type_, (self.value(a, type_), self.value(b, type_), self.value(c, type_))
        )

    def _common(self, operands: Sequence[Operand]) -> str:
        """The vector type among the operands if there is one, else their scalar type or the module's."""
        types = [v.type for v in operands if isinstance(v, Value)]
        return next((t for t in types if t.startswith("<")), types[0] if types else self.float)

    def neg(self, x: Value) -> Value:
        """-x, with the sign of NaN and zero flipped."""
        return self.instruction(x.type, f"fneg {x.type} {x.ref}")

    def intrinsic(self, name: str, type_: str, arguments: Sequence[Value]) -> Value:
        """Call `llvm.<name>` overloaded on one type that is also its result's."""
        symbol = f"llvm.{name}.{suffix(type_)}"
        return self.call(symbol, type_, arguments)

    def call(self, symbol: str, result: str, arguments: Sequence[Value]) -> Value:
        """Call an external function, declaring it."""
        self.module.declare(symbol, result, [a.type for a in arguments])
        spelled = ", ".join(f"{a.type} {a.ref}" for a in arguments)
        if result == "void":
            self.emit(f"call void @{symbol}({spelled})")
            return Value(self, "", "void")
        return self.instruction(result, f"call {result} @{symbol}({spelled})")

    def invoke(self, function: Instructions, arguments: Sequence[Operand]) -> None:
        """Call another function of this module that returns nothing."""
        values = [self.value(a, p.type) for a, p in zip(arguments, function.arguments, strict=True)]
        self.emit(f"call void @{function.name}({', '.join(f'{v.type} {v.ref}' for v in values)})")

    def sqrt(self, x: Value) -> Value:
        """Correctly rounded square root."""
        return self.intrinsic("sqrt", x.type, (x,))

    def abs(self, x: Value) -> Value:
        """The value without its sign."""
        return self.intrinsic("fabs", x.type, (x,))

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        """The magnitude of one, the sign of the other."""
        return self.intrinsic("copysign", magnitude.type, (magnitude, sign))

    def maximum(self, a: Value, b: Operand) -> Value:
        """The larger one; NaN if either is NaN."""
        return self._extreme("ogt", a, b)

    def minimum(self, a: Value, b: Operand) -> Value:
        """The smaller one; NaN if either is NaN."""
        return self._extreme("olt", a, b)

    def _extreme(self, predicate: str, a: Value, b: Operand) -> Value:
        b = self.value(b, a.type)
        a = self.value(a, b.type)
        either = self.select(self.compare(predicate, a, b), a, b)
        return self.select(self.compare("uno", a, a), a, either)

    def compare(self, predicate: str, a: Operand, b: Operand) -> Value:
        """fcmp (ogt, olt, oge, ole, oeq, une, uno, ...) or icmp (slt, ult, eq, ne, ...) by type."""
        if not isinstance(a, Value):
            assert isinstance(b, Value)
            a = self.value(a, b.type)
        b = self.value(b, a.type)
        a = self.value(a, b.type)
        kind = "fcmp" if is_float(a.type) else "icmp"
        result = f"<{self.lanes} x i1>" if a.type.startswith("<") else "i1"
        return self.instruction(result, f"{kind} {predicate} {a.type} {a.ref}, {b.ref}")

    def select(self, condition: Value, a: Operand, b: Operand) -> Value:
        """Lanewise a where the condition holds, else b."""
        typed_name = self._common((a, b))
        if condition.type.startswith("<") and not typed_name.startswith("<"):
            typed_name = f"<{self.lanes} x {typed_name}>"
        x, y = self.value(a, typed_name), self.value(b, typed_name)
        return self.instruction(
            typed_name, f"select {condition.type} {condition.ref}, {x.type} {x.ref}, {y.type} {y.ref}"
        )

    def relu(self, x: Value) -> Value:
        """0 where x < 0, else x: NaN and -0 stay."""
        zero = self.zero(x.type) if x.type not in FLOATS else self.value(0.0, x.type)
        return self.select(self.compare("olt", x, zero), zero, x)

    def smin(self, a: Int, b: Int) -> Value:
        """The smaller of two signed i64."""
        return self.intrinsic("smin", "i64", (self.value(a), self.value(b)))

    def smax(self, a: Int, b: Int) -> Value:
        """The larger of two signed i64."""
        return self.intrinsic("smax", "i64", (self.value(a), self.value(b)))


def _fold(op: str, a: Value, b: Value) -> Value | int | None:
    x = int(a.ref) if a.ref.lstrip("-").isdigit() else None
    y = int(b.ref) if b.ref.lstrip("-").isdigit() else None
    if x is not None and y is not None:
        match op:
            case "add":
                return x + y
            case "sub":
                return x - y
            case "mul":
                return x * y
            case "udiv":
                return x // y
            case "urem":
                return x % y
    if op == "add" and x == 0:
        return b
    if op in ("add", "sub") and y == 0:
        return a
    if op == "mul" and (x == 0 or y == 0):
        return 0
    if op == "mul" and x == 1:
        return b
    if op in ("mul", "udiv") and y == 1:
        return a
    if op == "urem" and y == 1:
        return 0
    return None
