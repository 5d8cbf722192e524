"""Recomputation (rematerialization): readers compute a value again where that moves fewer bytes.

A group's traffic is what it reads and writes. An element-wise value costs one write, and one read in every
group that uses it. A group that computes it again reads what the value is made of instead, which costs
nothing where the group reads that anyway; and where all readers do, the value need not be written. Reductions
that take their operands as expressions can compute them too. A value is cheap enough if a few operations make
it: then arithmetic hides behind the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, final

import onnx_ir as ir

from onward.compile.codegen.target import Target
from onward.compile.grouping import go_together, kinds_of
from onward.compile.groups import Group, host
from onward.compile.kernels.expression import Expression, flops, operand
from onward.compile.program import Operation, Program

__all__ = ["recompute"]


def recompute(groups: list[Group], program: Program, target: Target) -> list[Group]:
    """The groups with values computed where they are read, if that lessens traffic; empty ones are gone."""
    return _Traffic(groups, program, target).lessened()


@final
class _Traffic:
    """Which group keeps and which ones read each value, while groups change."""

    def __init__(self, groups: list[Group], program: Program, target: Target) -> None:
        self.tuning = target.tuning
        self.groups = groups
        self.program = program
        self.outputs = frozenset(program.outputs.values())
        self.costs: dict[Operation, int] = {}
        self.order = {operation: i for i, operation in enumerate(program.operations)}
        self.maker: dict[ir.Value, Operation] = {}
        self.home: dict[ir.Value, Group] = {}
        self.readers: dict[ir.Value, dict[Group, None]] = {}
        self.inputs = {group: group.inputs for group in groups}
        self.bytes = {v: prod(shape) * program.dtypes[v].itemsize for v, shape in program.shapes.items()}
        for group in groups:
            for operation in group.operations:
                self.maker.update(dict.fromkeys(operation.outputs, operation))
                self.home.update(dict.fromkeys(operation.outputs, group))
            for value in self.inputs[group]:
                self.readers.setdefault(value, {})[group] = None

    def lessened(self) -> list[Group]:
        """Change groups until nothing helps any more."""
        pending = dict.fromkeys(v for g in self.groups for o in g.elements for v in o.outputs)
        while pending:
            value = next(iter(pending))
            del pending[value]
            for group in self._improve(value):
                pending.update(dict.fromkeys((*self.inputs[group], *self._kept(group))))
        return [group for group in self.groups if group.operations]

    def _improve(self, value: ir.Value) -> list[Group]:
        """Let readers compute a value, all of them or one; the groups that changed."""
        home, readers = self.home.get(value), list(self.readers.get(value, ()))
        able = [g for g in readers if self._may_compute(g, value)]
        if home is None or not able or self.maker[value] not in home.elements:
            return []
        whole = [able] if len(able) == len(readers) and value not in self.outputs else []
        for chain in self._chains(home, value):
            for chosen in (*whole, *([g] for g in able)):
                if self._lessens(value, chain, home, chosen):
                    return [home, *chosen]
        return []

    def _may_compute(self, group: Group, value: ir.Value) -> bool:
        """Whether a group's kernel takes a value as an expression wherever it reads it."""
        elements = group.elements
        if group.shape is not None and group.shape != self.program.shapes[value]:
            return False
        if value in self.home and not go_together(
            kinds_of((*elements, *self.home[value].elements), self.program)
        ):
            return False
        return all(
            o in elements or value in o.request.expressions for o in group.operations if value in o.inputs
        )

    def _chains(self, home: Group, value: ir.Value) -> Iterator[list[Operation]]:
        """The operations of `home` that make a value: from what `home` keeps, and from what it reads."""
        made = {v for o in home.operations for v in o.outputs}
        shorter: list[Operation] = []
        for kept in ({v for v in made if v is not value and self._is_kept(v, home)}, set()):
            wanted, chain = {value}, []
            for operation in reversed(home.elements):
                if any(v in wanted for v in operation.outputs):
                    chain.append(operation)
                    wanted.update(v for v in operation.inputs if v in made and v not in kept)
            if chain != shorter and sum(map(self._cost, chain)) <= self.tuning.recompute_flops:
                yield chain
            shorter = chain

    def _lessens(self, value: ir.Value, chain: list[Operation], home: Group, chosen: list[Group]) -> bool:
        """Let the chosen groups compute the chain; whether that moves less. If not, all is as before."""
        affected = [home, *chosen]
        before = sum(map(self._traffic, affected))
        old = [(g, g.operations, g.again) for g in affected]
        read = dict.fromkeys((value, *(v for g in chosen for v in self.inputs[g])))
        for group in chosen:
            self._add(group, chain)
            self._compute_what_is_at_hand(group)
        self._prune(home)
        largest, operands = self.tuning.group_operations, self.tuning.group_operands
        fits = all(len(g.operations) <= largest and len(self.inputs[g]) <= operands for g in chosen)
        if not fits or sum(map(self._traffic, affected)) >= before:
            for group, operations, again in old:
                self._change(group, operations, again)
            return False
        for gone in (v for v in read if v in self.home and not self._is_kept(v, self.home[v])):
            self._prune(self.home.pop(gone))
        return True

    def _compute_what_is_at_hand(self, group: Group) -> None:
        """Let a group compute whatever it reads that follows from other things it reads."""
        for value in self.inputs[group]:
            home = self.home.get(value)
            if home is None or self.maker[value] not in home.elements or not self._may_compute(group, value):
                continue
            for chain in self._chains(home, value):
                traffic, operations, again = self._traffic(group), group.operations, group.again
                self._add(group, chain)
                if self._traffic(group) < traffic:
                    break
                self._change(group, operations, again)

    def _add(self, group: Group, chain: list[Operation]) -> None:
        operations = sorted({*group.operations, *chain}, key=self.order.__getitem__)
        self._change(group, operations, group.again | {v for o in chain for v in o.outputs})

    def _change(self, group: Group, operations: list[Operation], again: set[ir.Value]) -> None:
        for value in self.inputs[group]:
            del self.readers[value][group]
        group.operations, group.again = operations, again
        self.inputs[group] = group.inputs
        for value in self.inputs[group]:
            self.readers.setdefault(value, {})[group] = None

    def _prune(self, group: Group) -> None:
        """Drop element-wise operations whose results nobody needs."""
        needed: set[ir.Value] = set()
        left = []
        for operation in reversed(group.operations):
            elementwise = operation in group.elements
            if not elementwise or any(v in needed or self._is_kept(v, group) for v in operation.outputs):
                left.append(operation)
                needed.update(v for v in operation.inputs if v is not None)
        self._change(group, left[::-1], group.again)

    def _is_kept(self, value: ir.Value, group: Group) -> bool:
        return value not in group.again and (value in self.outputs or bool(self.readers.get(value)))

    def _kept(self, group: Group) -> list[ir.Value]:
        return [v for o in group.operations for v in o.outputs if self._is_kept(v, group)]

    def _cost(self, operation: Operation) -> int:
        if operation not in self.costs:
            self.costs[operation] = _arithmetic(operation)
        return self.costs[operation]

    def _traffic(self, group: Group) -> int:
        """Bytes that a group reads and writes; what a kernel computes before storing is neither."""
        kept = self._kept(group)
        fused = host(group, self.inputs[group], self.program, self.maker, kept, self._read_once)
        moved = sum(map(self.bytes.__getitem__, (*self.inputs[group], *kept)))
        return moved - (0 if fused is None else 2 * self.bytes[fused])

    def _read_once(self, value: ir.Value) -> bool:
        return len(self.readers[value]) == 1 and value not in self.outputs


def _arithmetic(operation: Operation) -> int:
    """Of one element."""
    operator: Any = operation.operator
    operands = [None if v is None else operand(i) for i, v in enumerate(operation.inputs)]
    found: Expression | tuple[Expression, ...] = operator.element(*operands)
    return flops(found if isinstance(found, tuple) else (found,))
