"""Instructions that read and write memory: elements, vectors, masked and strided ones."""

from __future__ import annotations

from abc import ABC

from onward.compile.codegen.lanes import Lanes
from onward.compile.codegen.spelling import alignment, element_of, suffix
from onward.compile.codegen.values import Int, Value

__all__ = ["Memory"]


class Memory(Lanes, ABC):
    """Writes loads and stores."""

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
        return self.instruction(type_, f"load {type_}, ptr {address.ref}, align {alignment(type_)}")

    def store(self, x: Value, pointer: Value, index: Int = 0) -> None:
        """Store an element; `index` counts elements of its type."""
        address = self.at(pointer, index, x.type)
        self.emit(f"store {x.type} {x.ref}, ptr {address.ref}, align {alignment(x.type)}")

    def vload(
        self, pointer: Value, index: Int = 0, mask: Value | None = None, element: str | None = None
    ) -> Value:
        """Load a vector that starts `index` elements on; lanes outside the mask are zero and not touched."""
        element = element or self.float
        address = self.at(pointer, index, element)
        type_ = f"<{self.lanes} x {element}>"
        if mask is None:
            return self.instruction(type_, f"load {type_}, ptr {address.ref}, align {alignment(element)}")
        other = self.zero(type_)
        align = Value(self, str(alignment(element)), "i32")
        return self.call(f"llvm.masked.load.{suffix(type_)}.p0", type_, (address, align, mask, other))

    def vstore(self, x: Value, pointer: Value, index: Int = 0, mask: Value | None = None) -> None:
        """Store a vector from `index` elements on; memory of lanes outside the mask is not touched."""
        element = element_of(x.type)
        address = self.at(pointer, index, element)
        if mask is None:
            self.emit(f"store {x.type} {x.ref}, ptr {address.ref}, align {alignment(element)}")
            return
        align = Value(self, str(alignment(element)), "i32")
        self.call(f"llvm.masked.store.{suffix(x.type)}.p0", "void", (x, address, align, mask))

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
        align = Value(self, str(alignment(self.float)), "i32")
        arguments = (self._spread(pointer, stride), align, self._whole_mask(mask), self.zero())
        name = f"llvm.masked.gather.{suffix(self.vector)}.v{self.lanes}p0"
        return self.call(name, self.vector, arguments)

    def scatter(self, x: Value, pointer: Value, stride: int, mask: Value | None = None) -> None:
        """Store a vector's lanes `stride` elements apart; those outside the mask are left out."""
        align = Value(self, str(alignment(self.float)), "i32")
        arguments = (x, self._spread(pointer, stride), align, self._whole_mask(mask))
        self.call(f"llvm.masked.scatter.{suffix(self.vector)}.v{self.lanes}p0", "void", arguments)

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
