"""A thin layer that writes LLVM IR text for numeric kernels.

Text is written directly: building one tile kernel takes about a millisecond, a tenth of what an object graph
of instructions costs, and the text is also the kernel's cache key.

Arithmetic carries no fast-math flag except `contract`, so NaN, Inf and the order of a sum are what the
generator wrote. Vector reductions are explicit, so nothing is lost by that.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence

from onward.compile.codegen.target import Target

__all__ = ["ENTRY", "Function", "Int", "Module", "Value", "float_literal", "is_float"]

ENTRY = "onward_kernel"
"""The name of every kernel's entry function in its IR; the JIT replaces it by one made from the content."""

_FLAGS = "contract"
_INTEGER = frozenset(("i1", "i8", "i16", "i32", "i64"))
_FLOATS = ("float", "double")


def float_literal(x: float, type_: str = "float") -> str:
    """The LLVM spelling of a constant, rounded to its type: float or double."""
    if type_ == "float":
        x = struct.unpack("<f", struct.pack("<f", x))[0]
    bits = struct.unpack("<Q", struct.pack("<d", x))[0]
    return f"0x{bits:016X}"


def is_float(type_: str) -> bool:
    """Whether an LLVM type is a floating-point number or a vector of them."""
    return type_.rstrip(">").endswith(_FLOATS)


class Value:
    """An SSA value: its spelling and LLVM type. Operators emit instructions into its function."""

    __slots__ = ("function", "ref", "type")

    def __init__(self, function: Function, ref: str, type_: str) -> None:
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


class Module:
    """One compilation unit: declarations, helper functions and the entry function.

    `float` is LLVM's type of the elements that the target is for, `vector` the one of a vector of them.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.lanes = target.lanes
        self.float = target.element.llvm
        self.vector = f"<{target.lanes} x {self.float}>"
        self._declarations: dict[str, str] = {}
        self._functions: list[Function] = []
        self._metadata: list[str] = []
        self._globals: list[str] = []

    def declare(self, name: str, result: str, arguments: Sequence[str]) -> None:
        """Declare an external function or intrinsic once."""
        self._declarations[name] = f"declare {result} @{name}({', '.join(arguments)})"

    def function(
        self, name: str, parameters: Sequence[tuple[str, str]], result: str = "void", *, internal: bool = True
    ) -> Function:
        """Start a function; `parameters` are (name, LLVM type) pairs."""
        # The loader looks up local names in one table for all modules: the entry's name makes them unique.
        symbol = f"{ENTRY}_{name}" if internal else name
        f = Function(self, symbol, parameters, result, internal)
        self._functions.append(f)
        return f

    def entry(self) -> Function:
        """Start the kernel's entry: `void (ptr args, i64 thread, i64 threads)`."""
        return self.function(ENTRY, (("args", "ptr"), ("thread", "i64"), ("threads", "i64")), internal=False)

    def integers(self, name: str, values: Sequence[int]) -> str:
        """A constant table of i64; gives its symbol."""
        body = ", ".join(f"i64 {v}" for v in values)
        symbol = f"@{ENTRY}_{name}"
        self._globals.append(f"{symbol} = internal constant [{len(values)} x i64] [{body}], align 8")
        return symbol

    def loop_metadata(self) -> str:
        """A distinct loop identity that forbids unrolling and vectorising."""
        n = len(self._metadata) + 2
        self._metadata.append(f"!{n} = distinct !{{!{n}, !0, !1}}")
        return f"!{n}"

    def text(self) -> str:
        """The whole module as LLVM assembly."""
        parts = list(self._globals)
        parts += [f.text() for f in self._functions]
        parts += list(self._declarations.values())
        parts.append('attributes #0 = { nounwind "no-trapping-math"="true" "reciprocal-estimates"="none" }')
        parts.append('!0 = !{!"llvm.loop.unroll.disable"}')
        parts.append('!1 = !{!"llvm.loop.vectorize.enable", i1 false}')
        parts += self._metadata
        return "\n".join(parts) + "\n"


class Function:
    """Writes the instructions of one function, in order, at the end of the current block."""

    def __init__(
        self, module: Module, name: str, parameters: Sequence[tuple[str, str]], result: str, internal: bool
    ) -> None:
        self.module = module
        self.lanes = module.lanes
        self.float = module.float
        self.vector = module.vector
        self.name = name
        self._result = result
        self._internal = internal
        self._parameters = tuple(parameters)
        self._locals: list[str] = []
        self._lines: list[str] = []
        self._block = "entry"
        self._next = 0
        self.arguments = tuple(Value(self, f"%{n}", t) for n, t in parameters)

    def text(self) -> str:
        """The function definition as LLVM assembly."""
        spelled = ", ".join(f"{t} %{n}" for n, t in self._parameters)
        linkage = "internal " if self._internal else ""
        inline = "noinline " if self._internal else ""
        head = f"define {linkage}{self._result} @{self.name}({spelled}) {inline}#0 {{\nentry:"
        return "\n".join([head, *self._locals, *self._lines, "}"])

    # Emission

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
            if x.type in _FLOATS and type_.endswith(f"x {x.type}>"):
                return self.splat(x)
            return x
        if type_ in _INTEGER:
            return Value(self, str(int(x)), type_)
        if type_ in _FLOATS:
            return Value(self, float_literal(x, type_), type_)
        count, element = type_[1:-1].split(" x ")
        one = float_literal(x, element) if element in _FLOATS else str(int(x))
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
        symbol = f"llvm.{name}.{_suffix(type_)}"
        return self.call(symbol, type_, arguments)

    def call(self, symbol: str, result: str, arguments: Sequence[Value]) -> Value:
        """Call an external function, declaring it."""
        self.module.declare(symbol, result, [a.type for a in arguments])
        spelled = ", ".join(f"{a.type} {a.ref}" for a in arguments)
        if result == "void":
            self.emit(f"call void @{symbol}({spelled})")
            return Value(self, "", "void")
        return self.instruction(result, f"call {result} @{symbol}({spelled})")

    def invoke(self, function: Function, arguments: Sequence[Operand]) -> None:
        """Call another function of this module that returns nothing."""
        values = [self.value(a, t) for a, (_, t) in zip(arguments, function._parameters, strict=True)]
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
        zero = self.zero(x.type) if x.type not in _FLOATS else self.value(0.0, x.type)
        return self.select(self.compare("olt", x, zero), zero, x)

    # Memory

    def at(self, pointer: Value, index: Int, element: str | None = None) -> Value:
        """The address of an element, by default of the module's type."""
        element = element or self.float
        index = self.value(index)
        if index.ref == "0":
            return pointer
        return self.instruction(
            "ptr", f"getelementptr inbounds {element}, ptr {pointer.ref}, i64 {index.ref}"
        )

    def load(self, pointer: Value, type_: str | None = None, index: Int = 0) -> Value:
        """Load an element, by default of the module's type; `index` counts elements of that type."""
        type_ = type_ or self.float
        address = self.at(pointer, index, type_)
        return self.instruction(type_, f"load {type_}, ptr {address.ref}, align {_align(type_)}")

    def store(self, x: Value, pointer: Value, index: Int = 0) -> None:
        """Store an element; `index` counts elements of its type."""
        address = self.at(pointer, index, x.type)
        self.emit(f"store {x.type} {x.ref}, ptr {address.ref}, align {_align(x.type)}")

    def vload(
        self, pointer: Value, index: Int = 0, mask: Value | None = None, element: str | None = None
    ) -> Value:
        """Load a vector that starts `index` elements on; lanes outside the mask are zero and not touched."""
        element = element or self.float
        address = self.at(pointer, index, element)
        type_ = f"<{self.lanes} x {element}>"
        if mask is None:
            return self.instruction(type_, f"load {type_}, ptr {address.ref}, align {_align(element)}")
        other = self.zero(type_)
        align = Value(self, str(_align(element)), "i32")
        return self.call(f"llvm.masked.load.{_suffix(type_)}.p0", type_, (address, align, mask, other))

    def vstore(self, x: Value, pointer: Value, index: Int = 0, mask: Value | None = None) -> None:
        """Store a vector from `index` elements on; memory of lanes outside the mask is not touched."""
        element = x.type.split(" x ")[1][:-1]
        address = self.at(pointer, index, element)
        if mask is None:
            self.emit(f"store {x.type} {x.ref}, ptr {address.ref}, align {_align(element)}")
            return
        align = Value(self, str(_align(element)), "i32")
        self.call(f"llvm.masked.store.{_suffix(x.type)}.p0", "void", (x, address, align, mask))

    def prefetch(self, pointer: Value, index: Int = 0, *, level: int = 2, write: bool = False) -> None:
        """Fetch an element's cache line into the cache of a level, to read or write; any address will do."""
        address = self.at(pointer, index)
        how, locality, data = (self.value(n, "i32") for n in (int(write), 4 - level, 1))
        self.call("llvm.prefetch.p0", "void", (address, how, locality, data))

    def broadcast(self, pointer: Value, index: Int = 0) -> Value:
        """An element from memory in every lane."""
        return self.splat(self.load(pointer, None, index))

    def gather(self, pointer: Value, stride: int, mask: Value | None = None) -> Value:
        """Elements `stride` apart as a vector; lanes outside the mask are zero and not touched."""
        align = Value(self, str(_align(self.float)), "i32")
        arguments = (self._spread(pointer, stride), align, self._whole_mask(mask), self.zero())
        name = f"llvm.masked.gather.{_suffix(self.vector)}.v{self.lanes}p0"
        return self.call(name, self.vector, arguments)

    def scatter(self, x: Value, pointer: Value, stride: int, mask: Value | None = None) -> None:
        """Store a vector's lanes `stride` elements apart; those outside the mask are left out."""
        align = Value(self, str(_align(self.float)), "i32")
        arguments = (x, self._spread(pointer, stride), align, self._whole_mask(mask))
        self.call(f"llvm.masked.scatter.{_suffix(self.vector)}.v{self.lanes}p0", "void", arguments)

    def _spread(self, pointer: Value, stride: int) -> Value:
        """The addresses of elements `stride` apart."""
        offsets = ", ".join(f"i64 {i * stride}" for i in range(self.lanes))
        type_ = f"<{self.lanes} x ptr>"
        where = f"ptr {pointer.ref}, <{self.lanes} x i64> <{offsets}>"
        return self.instruction(type_, f"getelementptr inbounds {self.float}, {where}")

    def _whole_mask(self, mask: Value | None) -> Value:
        if mask is not None:
            return mask
        body = ", ".join(["i1 1"] * self.lanes)
        return Value(self, f"<{body}>", f"<{self.lanes} x i1>")

    def lane_ids(self, element: str = "i64") -> Value:
        """0, 1, 2, ... as a constant vector."""
        body = ", ".join(f"{element} {i}" for i in range(self.lanes))
        return Value(self, f"<{body}>", f"<{self.lanes} x {element}>")

    def mask(self, count: Int) -> Value | None:
        """The mask of the first `count` lanes; None when all lanes are known to be in."""
        if isinstance(count, int):
            if count >= self.lanes:
                return None
            body = ", ".join(f"i1 {int(i < count)}" for i in range(self.lanes))
            return Value(self, f"<{body}>", f"<{self.lanes} x i1>")
        narrow = self.cast("trunc", self.smin(count, self.lanes), "i32")
        return self.compare("slt", self.lane_ids("i32"), self.splat(narrow))

    def smin(self, a: Int, b: Int) -> Value:
        """The smaller of two signed i64."""
        return self.intrinsic("smin", "i64", (self.value(a), self.value(b)))

    def smax(self, a: Int, b: Int) -> Value:
        """The larger of two signed i64."""
        return self.intrinsic("smax", "i64", (self.value(a), self.value(b)))

    # Lanes

    def extract(self, x: Value, lane: int) -> Value:
        """One lane of a vector."""
        element = x.type.split(" x ")[1][:-1]
        return self.instruction(element, f"extractelement {x.type} {x.ref}, i64 {lane}")

    def insert(self, x: Value, element: Value, lane: int) -> Value:
        """The vector with one lane replaced."""
        return self.instruction(
            x.type, f"insertelement {x.type} {x.ref}, {element.type} {element.ref}, i64 {lane}"
        )

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """Lanes chosen from the concatenation of two vectors; -1 leaves a lane undefined."""
        element = a.type.split(" x ")[1][:-1]
        type_ = f"<{len(lanes)} x {element}>"
        chosen = ", ".join(f"i32 {i}" if i >= 0 else "i32 poison" for i in lanes)
        return self.instruction(
            type_, f"shufflevector {a.type} {a.ref}, {b.type} {b.ref}, <{len(lanes)} x i32> <{chosen}>"
        )

    def reduce(self, x: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """All lanes combined pairwise in a fixed tree."""
        width = int(x.type[1:].split(" x ")[0])
        poison = Value(self, "poison", x.type)
        full = width
        while width > 1:
            half = width // 2
            upper = [i + half if i < half else -1 for i in range(full)]
            x = combine(x, self.shuffle(x, poison, upper))
            width = half
        return self.extract(x, 0)

    # Control flow

    def loop(
        self,
        start: Int,
        stop: Int,
        step: Int = 1,
        carry: Sequence[Value] = (),
        *,
        body: Callable[[Value, list[Value]], Sequence[Value]],
        nonempty: bool = False,
    ) -> list[Value]:
        """for i in range(start, stop, step): carry = body(i, carry); gives the last carry.

        Trip counts known to be 0 or 1 make no loop; any other loop is never unrolled. `nonempty` promises at
        least one trip.
        """
        carry = list(carry)
        known = all(isinstance(v, int) for v in (start, stop, step))
        if known:
            trips = len(range(int(start), int(stop), int(step)))  # type: ignore[arg-type]
            if trips == 0:
                return carry
            if trips == 1:
                return list(body(self.value(start), carry))
        first, last, stride = self.value(start), self.value(stop), self.value(step)
        before = self._block
        label, done = self._fresh("loop"), self._fresh("done")
        straight = known or nonempty
        if straight:
            self.emit(f"br label %{label}")
        else:
            enter = self.compare("slt", first, last)
            self.emit(f"br i1 {enter.ref}, label %{label}, label %{done}")
        self._start(label)
        head = len(self._lines)
        index = Value(self, "%" + self._fresh("i"), "i64")
        phis = [Value(self, "%" + self._fresh("p"), c.type) for c in carry]
        self._lines.extend([""] * (1 + len(phis)))
        results = list(body(index, phis))
        after = self.binary("add", index, stride)
        again = self.compare("slt", after, last)
        latch = self._block
        self.emit(
            f"br i1 {again.ref}, label %{label}, label %{done}, !llvm.loop {self.module.loop_metadata()}"
        )
        pairs = [(index, first, after), *zip(phis, carry, results, strict=True)]
        for n, (phi, initial, update) in enumerate(pairs):
            self._lines[head + n] = (
                f"  {phi.ref} = phi {phi.type} [ {initial.ref}, %{before} ], [ {update.ref}, %{latch} ]"
            )
        self._start(done)
        if straight:
            return results
        return [
            self.instruction(r.type, f"phi {r.type} [ {c.ref}, %{before} ], [ {r.ref}, %{latch} ]")
            for c, r in zip(carry, results, strict=True)
        ]

    @contextlib.contextmanager
    def range(self, start: Int, stop: Int, step: Int = 1) -> Iterator[Value]:
        """`with f.range(a, b) as i:` is a loop without carried values; never unrolled."""
        first, last, stride = self.value(start), self.value(stop), self.value(step)
        known = all(isinstance(v, int) for v in (start, stop, step))
        if known and len(range(int(start), int(stop), int(step))) == 1:  # type: ignore[arg-type]
            yield first
            return
        before = self._block
        label, done = self._fresh("loop"), self._fresh("done")
        enter = self.compare("slt", first, last)
        self.emit(f"br i1 {enter.ref}, label %{label}, label %{done}")
        self._start(label)
        head = len(self._lines)
        index = Value(self, "%" + self._fresh("i"), "i64")
        self._lines.append("")
        yield index
        after = self.binary("add", index, stride)
        again = self.compare("slt", after, last)
        latch = self._block
        self.emit(
            f"br i1 {again.ref}, label %{label}, label %{done}, !llvm.loop {self.module.loop_metadata()}"
        )
        self._lines[head] = f"  {index.ref} = phi i64 [ {first.ref}, %{before} ], [ {after.ref}, %{latch} ]"
        self._start(done)

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """`with f.when(c):` runs its block where the scalar condition holds."""
        label, done = self._fresh("then"), self._fresh("done")
        self.emit(f"br i1 {condition.ref}, label %{label}, label %{done}")
        self._start(label)
        yield
        self.emit(f"br label %{done}")
        self._start(done)

    @contextlib.contextmanager
    def repeat(self) -> Iterator[Callable[[Value], None]]:
        """`with f.repeat() as leave:` loops until `leave(condition)` finds its condition true."""
        label, done = self._fresh("again"), self._fresh("done")
        self.emit(f"br label %{label}")
        self._start(label)

        def leave(condition: Value) -> None:
            more = self._fresh("more")
            self.emit(f"br i1 {condition.ref}, label %{done}, label %{more}")
            self._start(more)

        yield leave
        self.emit(f"br label %{label}")
        self._start(done)

    def local(self, type_: str, count: int = 1) -> Value:
        """The address of storage on the stack, for `count` elements."""
        name = "%" + self._fresh("s")
        self._locals.append(f"  {name} = alloca {type_}, i64 {count}, align 64")
        return Value(self, name, "ptr")

    def ret(self) -> None:
        """Return from the function."""
        self.emit("ret void")

    def share(self, total: Int, thread: Value, threads: Value) -> tuple[Value, Value]:
        """The half-open range of `total` work units that is this thread's."""
        low = self.binary("udiv", self.value(total) * thread, threads)
        high = self.binary("udiv", self.value(total) * (thread + 1), threads)
        return low, high


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


def _suffix(type_: str) -> str:
    if type_.startswith("<"):
        count, element = type_[1:-1].split(" x ")
        return f"v{count}{_suffix(element)}"
    return {"float": "f32", "double": "f64"}.get(type_, type_)


def _align(type_: str) -> int:
    return {"i8": 1, "i16": 2, "i32": 4, "float": 4, "i64": 8, "ptr": 8, "double": 8}.get(type_, 4)
