"""Instructions on the lanes of vectors: masks, shuffles, reductions."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence

from onward.compile.codegen.spelling import element_of
from onward.compile.codegen.values import Instructions, Int, Value

__all__ = ["Lanes"]


class Lanes(Instructions, ABC):
    """Writes instructions that move lanes about, or choose some of them."""

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

    def extract(self, x: Value, lane: int) -> Value:
        """One lane of a vector."""
        element = element_of(x.type)
        return self.instruction(element, f"extractelement {x.type} {x.ref}, i64 {lane}")

    def insert(self, x: Value, element: Value, lane: int) -> Value:
        """The vector with one lane replaced."""
        return self.instruction(
            x.type, f"insertelement {x.type} {x.ref}, {element.type} {element.ref}, i64 {lane}"
        )

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """Lanes chosen from the concatenation of two vectors; -1 leaves a lane undefined."""
        element = element_of(a.type)
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
