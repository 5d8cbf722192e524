"""Operations that one kernel computes together, and their order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onward.compile.program import Operation, Program

__all__ = ["Group", "host", "ordered"]


@dataclass(eq=False)
class Group:
    """Operations that run as one, each after those it reads from.

    Attributes:
        operations: element-wise ones of one shape; or another one, alone or after element-wise operations
            whose results its kernel computes while it reads their operands.
        shape: of the element-wise operations where there are no others.
        again: values that are computed here once more, though others who read them ask another group.
    """

    operations: list[Operation]
    shape: tuple[int, ...] | None
    again: set[ir.Value] = field(default_factory=set)

    @property
    def inputs(self) -> list[ir.Value]:
        """What comes from outside, in order of appearance."""
        made = {v for o in self.operations for v in o.outputs}
        found = (v for o in self.operations for v in o.inputs if v is not None and v not in made)
        return list(dict.fromkeys(found))

    @property
    def last(self) -> Operation:
        """The operation that is not element-wise, where there is one."""
        return self.operations[-1]

    @property
    def elements(self) -> list[Operation]:
        """The element-wise operations."""
        return self.operations if self.shape is not None else self.operations[:-1]


def host(
    group: Group,
    inputs: Iterable[ir.Value],
    program: Program,
    makers: Mapping[ir.Value, Operation],
    kept: Collection[ir.Value],
    alone: Callable[[ir.Value], bool],
) -> ir.Value | None:
    """The operand whose producer may compute an element-wise group before it stores its result.

    Args:
        group: what is to be computed.
        inputs: what it reads.
        program: for shapes.
        makers: the operations that make values, as far as they are not element-wise.
        kept: what the group keeps for others.
        alone: whether a value has no other readers than the group, and is no result.
    """
    if group.shape is None or len(kept) != 1:
        return None
    for value in inputs:
        maker = makers.get(value)
        if maker is None or not maker.request.fuses_elements:
            continue
        if program.shapes[value] == group.shape and alone(value):
            return value
    return None


def ordered(groups: Sequence[Group]) -> list[Group]:
    """Depth-first, so that values are used soon after they are made.

    What starts something that goes on beside other calls comes as soon as its operands are there, and what
    starts before it in the graph.
    """
    return list(_ordered(groups))


def _ordered(groups: Sequence[Group]) -> Iterator[Group]:
    index = {group: i for i, group in enumerate(groups)}
    home: dict[ir.Value, Group] = {}
    for group in groups:
        for operation in group.operations:
            home.update((v, group) for v in operation.outputs if v not in group.again)
    reads = {
        group: sorted({home[v] for v in group.inputs if v in home} - {group}, key=index.__getitem__)
        for group in groups
    }
    done: set[Group] = set()
    left = {g: set(reads[g]) for g in groups if g.shape is None and g.last.request.starts}
    for root in groups:
        if root in done:
            continue
        stack = [(root, iter(reads[root]))]
        entered = {root}
        while stack:
            group, rest = stack[-1]
            following = next((g for g in rest if g not in done and g not in entered), None)
            if following is not None:
                entered.add(following)
                stack.append((following, iter(reads[following])))
                continue
            stack.pop()
            if group not in done:
                done.add(group)
                yield group
                for missing in left.values():
                    missing.discard(group)
                for starting, missing in left.items():
                    if missing:  # those behind it wait for it: calls are started in the graph's order
                        break
                    if starting not in done:
                        done.add(starting)
                        yield starting
