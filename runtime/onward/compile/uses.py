"""Use lists: who reads which value of a program whose operations are in groups."""

from __future__ import annotations

import onnx_ir as ir

from onward.compile.groups import Group, host
from onward.compile.program import Operation, Program

__all__ = ["Uses"]


class Uses:
    """The readers of every value.

    Attributes:
        outputs: the program's results.
        last: the position of the last group that reads a value.
        position: of the group that keeps a value.
    """

    def __init__(self, program: Program, groups: list[Group]) -> None:
        self.outputs = frozenset(program.outputs.values())
        self._program = program
        self._makers: dict[ir.Value, Operation] = {}
        self.last: dict[ir.Value, int] = {}
        self.position: dict[ir.Value, int] = {}
        self._groups: dict[ir.Value, list[Group]] = {}
        for i, group in enumerate(groups):
            for value in group.inputs:
                self._groups.setdefault(value, []).append(group)
            if group.shape is None:
                self._makers.update(dict.fromkeys(group.last.outputs, group.last))
            for operation in group.operations:
                self.last.update({v: i for v in operation.inputs if v is not None})
                self.position.update((v, i) for v in operation.outputs if v not in group.again)

    def groups(self, value: ir.Value) -> list[Group]:
        """The groups that read a value which comes from outside them."""
        return self._groups.get(value, [])

    def is_read(self, value: ir.Value) -> bool:
        """Whether anything needs a value."""
        return value in self.outputs or value in self._groups

    def escapes(self, value: ir.Value, group: Group) -> bool:
        """Whether a group keeps a value of its own for others."""
        if value in group.again:
            return False
        return value in self.outputs or any(g is not group for g in self.groups(value))

    def host(self, group: Group) -> ir.Value | None:
        """The operand whose producer may compute an element-wise group before it stores its result."""
        kept = [v for o in group.operations for v in o.outputs if self.escapes(v, group)]
        return host(group, group.inputs, self._program, self._makers, kept, self._read_once)

    def _read_once(self, value: ir.Value) -> bool:
        return value not in self.outputs and len(self.groups(value)) == 1

    def sole_reader(self, value: ir.Value) -> Operation | None:
        """The operation that alone reads a value; None where there are several, or it is element-wise."""
        if not self._read_once(value):
            return None
        (reader,) = self.groups(value)
        return reader.last if reader.shape is None and not reader.elements else None
