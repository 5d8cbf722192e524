"""Who reads what in a program whose operations are in groups."""

from __future__ import annotations

import onnx_ir as ir

from onward.compile.groups import Group
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
        self.last: dict[ir.Value, int] = {}
        self.position: dict[ir.Value, int] = {}
        self._groups: dict[ir.Value, list[Group]] = {}
        for i, group in enumerate(groups):
            for value in group.inputs:
                self._groups.setdefault(value, []).append(group)
            for operation in group.operations:
                self.last.update({v: i for v in operation.inputs if v is not None})
                self.position.update((v, i) for v in operation.outputs if v not in group.again)

    def groups(self, value: ir.Value) -> list[Group]:
        """The groups that read a value which comes from outside them."""
        return self._groups.get(value, [])

    def escapes(self, value: ir.Value, group: Group) -> bool:
        """Whether a group keeps a value of its own for others."""
        if value in group.again:
            return False
        return value in self.outputs or any(g is not group for g in self.groups(value))

    def sole_reader(self, value: ir.Value) -> Operation | None:
        """The operation that alone reads a value; None where there are several, or it is element-wise."""
        users = self.groups(value)
        alone = value not in self.outputs and len(users) == 1
        return users[0].last if alone and users[0].shape is None and not users[0].elements else None
