"""A thin layer that writes LLVM IR text for numeric kernels.

Text is written directly: building one tile kernel takes about a millisecond, a tenth of what an object graph
of instructions costs, and the text is also the kernel's cache key.

Arithmetic carries no fast-math flag except `contract`, so NaN, Inf and the order of a sum are what the
generator wrote. Vector reductions are explicit, so nothing is lost by that.

A function is written by its parts: `values` (constants and arithmetic), `lanes`, `memory`, `control`.
"""

from __future__ import annotations

from collections.abc import Sequence

from onward.compile.codegen.control import Control
from onward.compile.codegen.memory import Memory
from onward.compile.codegen.symbols import ENTRY, Symbols
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value

__all__ = ["Function", "Module"]


class Module(Symbols):
    """One compilation unit: declarations, helper functions and the entry function."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._functions: list[Function] = []

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

    def text(self) -> str:
        """The whole module as LLVM assembly."""
        return self.around([f.text() for f in self._functions])


class Function(Memory, Control):
    """Writes the instructions of one function, in order, at the end of the current block."""

    module: Module

    def __init__(
        self, module: Module, name: str, parameters: Sequence[tuple[str, str]], result: str, internal: bool
    ) -> None:
        super().__init__(module, name, parameters)
        self._result = result
        self._internal = internal
        self._locals: list[str] = []

    def text(self) -> str:
        """The function definition as LLVM assembly."""
        spelled = ", ".join(f"{a.type} {a.ref}" for a in self.arguments)
        linkage = "internal " if self._internal else ""
        inline = "noinline " if self._internal else ""
        head = f"define {linkage}{self._result} @{self.name}({spelled}) {inline}#0 {{\nentry:"
        return "\n".join([head, *self._locals, *self._lines, "}"])

    def local(self, type_: str, count: int = 1) -> Value:
        """The address of storage on the stack, for `count` elements."""
        name = "%" + self._fresh("s")
        self._locals.append(f"  {name} = alloca {type_}, i64 {count}, align 64")
        return Value(self, name, "ptr")
