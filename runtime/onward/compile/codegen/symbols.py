"""What the functions of a module share: declarations, constant tables and loop identities."""

from __future__ import annotations

from collections.abc import Sequence

from onward.compile.codegen.target import Target

__all__ = ["ENTRY", "Symbols"]

ENTRY = "onward_kernel"
"""The name of every kernel's entry function in its IR; the JIT replaces it by one made from the content."""


class Symbols:
    """The part of a module that its functions write to.

    `float` is LLVM's type of the elements that the target is for, `vector` the one of a vector of them.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.lanes = target.lanes
        self.float = target.element.llvm
        self.vector = f"<{target.lanes} x {self.float}>"
        self._declarations: dict[str, str] = {}
        self._metadata: list[str] = []
        self._globals: list[str] = []

    def declare(self, name: str, result: str, arguments: Sequence[str]) -> None:
        """Declare an external function or intrinsic once."""
        self._declarations[name] = f"declare {result} @{name}({', '.join(arguments)})"

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

    def around(self, functions: Sequence[str]) -> str:
        """The whole module as LLVM assembly, given its functions."""
        parts = [*self._globals, *functions, *self._declarations.values()]
        parts.append('attributes #0 = { nounwind "no-trapping-math"="true" "reciprocal-estimates"="none" }')
        parts.append('!0 = !{!"llvm.loop.unroll.disable"}')
        parts.append('!1 = !{!"llvm.loop.vectorize.enable", i1 false}')
        parts += self._metadata
        return "\n".join(parts) + "\n"
