"""Element-wise fusion: groups operations that one kernel computes in one pass over memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.compile.codegen.target import Target
from onward.compile.codegen.types import INTEGER_TYPES
from onward.compile.expressions import number
from onward.compile.groups import Group
from onward.compile.program import Operation, Program
from onward.graph.expression import Expression, operand, whole

__all__ = ["go_together", "grouped", "is_element", "kinds_of"]

_TRUTH = np.dtype(np.bool_)
_FLOATS = tuple(map(np.dtype, (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)))
"""Element types of which a pass may have one, beside truth values; or it has one of integers."""


def is_element(operation: Operation, program: Program) -> bool:
    """Whether an operation can be part of an element kernel: it has a rule, and types that are compiled."""
    if not hasattr(operation.operator, "element") or len(operation.outputs) == 0:
        return False
    if (suits := getattr(operation.operator, "element_suits", None)) is not None and not suits(
        *(None if v is None else program.constants.get(v) for v in operation.inputs)
    ):
        return False
    shape = program.shapes[operation.outputs[0]]
    values = [v for v in (*operation.inputs, *operation.outputs) if v is not None]
    kinds = {program.dtypes[v] for v in values} - {_TRUTH}
    if len(kinds) > 1 or not all(kind in _FLOATS or kind.name in INTEGER_TYPES for kind in kinds):
        return False
    if any(kind.name in INTEGER_TYPES for kind in kinds) and not _is_whole(operation, program):
        return False
    return all(program.shapes[v] == shape for v in operation.outputs) and all(
        _broadcasts(program.shapes[v], shape) for v in values
    )


def kinds_of(operations: Iterable[Operation], program: Program) -> frozenset[np.dtype[np.generic]]:
    """The element types that element-wise operations compute with, but for truth values."""
    values = (v for o in operations for v in (*o.inputs, *o.outputs) if v is not None and v.name)
    return frozenset(program.dtypes[v] for v in values) - {_TRUTH}


def go_together(kinds: Collection[np.dtype[np.generic]]) -> bool:
    """Whether one pass may compute with these types: any floats, or integers of one type."""
    return len(kinds) <= 1 or not any(kind.name in INTEGER_TYPES for kind in kinds)


def _is_whole(operation: Operation, program: Program) -> bool:
    """Whether integers are all that an operation computes with, given integers and truth values."""
    arguments: list[Expression | None] = []
    for index, value in enumerate(operation.inputs):
        given = None if value is None else number(program.constants.get(value)) or operand(index)
        truth = value is not None and program.dtypes[value] == _TRUTH
        arguments.append(given.apply("ne", 0.0) if truth and given is not None and not given.truth else given)
    found = operation.operator.element(*arguments)  # type: ignore[attr-defined]
    return all(whole(result) for result in (found if isinstance(found, tuple) else (found,)))


def _broadcasts(operand: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    tail = shape[len(shape) - len(operand) :] if len(operand) <= len(shape) else ()
    return len(operand) <= len(shape) and all(a in (1, b) for a, b in zip(operand, tail, strict=True))


def grouped(program: Program, target: Target) -> list[Group]:
    """The program's operations in groups with as many operations as may join them, in no order.

    An element-wise operation joins the group of one of its operands' producers when both have the same shape
    and no path leads from that group to it through another group. Truth values are not kept: each group that
    uses one computes it again.
    """
    reads: dict[Group, set[Group]] = {}
    home: dict[ir.Value, Group] = {}
    truths: dict[ir.Value, Operation] = {}
    elements = {o for o in program.operations if is_element(o, program)}
    kept = _kept_truths(program, elements)
    for operation in program.operations:
        element = operation in elements
        if element and not any(v in kept for v in operation.outputs) and _is_truth(operation, program):
            truths.update(dict.fromkeys(operation.outputs, operation))
            continue
        members = [*_behind(operation, truths), operation] if element else [operation]
        inside = {v for o in members for v in o.outputs}
        outside = [v for o in members for v in o.inputs if v is not None and v not in inside]
        sources = list(dict.fromkeys(home[v] for v in outside if v in home))
        shape = program.shapes[operation.outputs[0]] if element else None
        group = None
        if shape is not None:
            for candidate in reversed(sources):
                joined = kinds_of((*candidate.operations, *members), program)
                if (
                    candidate.shape == shape
                    and go_together(joined)
                    and _may_join(candidate, members, sources, reads, target)
                ):
                    group = candidate
                    break
        if group is None:
            group = Group([], shape)
            reads[group] = set()
        group.operations.extend(o for o in members if o not in group.operations)
        reads[group].update(g for g in sources if g is not group)
        for value in operation.outputs:
            home[value] = group
    return list(reads)


def _is_truth(operation: Operation, program: Program) -> bool:
    return all(program.dtypes[v] == np.bool_ for v in operation.outputs)


def _kept_truths(program: Program, elements: Collection[Operation]) -> set[ir.Value]:
    """Truth values that must be in memory: results, operands of operations that are not element-wise, and
    those of integers where a pass computes with other types."""
    kept = set(program.outputs.values())
    behind: dict[ir.Value, frozenset[np.dtype[np.generic]]] = {}
    for operation in program.operations:
        if operation not in elements:
            kept.update(v for v in operation.inputs if v is not None)
            continue
        kinds = kinds_of([operation], program)
        read = [v for v in operation.inputs if v is not None and v in behind]
        together = kinds.union(*(behind[v] for v in read))
        if not go_together(together):
            kept.update(read)
            together = kinds
        if _is_truth(operation, program):
            behind.update(dict.fromkeys(operation.outputs, together))
    return kept


def _behind(operation: Operation, truths: dict[ir.Value, Operation]) -> list[Operation]:
    """The operations that make an operation's truth values, in order."""
    found: list[Operation] = []
    for value in operation.inputs:
        if value is not None and (source := truths.get(value)) is not None:
            found.extend(o for o in (*_behind(source, truths), source) if o not in found)
    return found


def _may_join(
    group: Group,
    members: Sequence[Operation],
    sources: Iterable[Group],
    reads: Mapping[Group, Iterable[Group]],
    target: Target,
) -> bool:
    if len(group.operations) + len(members) > target.tuning.group_operations:
        return False
    tensors = set(group.inputs) | {v for o in members for v in o.inputs if v is not None}
    if len(tensors) > target.tuning.group_operands:
        return False
    return not any(source is not group and _reaches(source, group, reads) for source in sources)


def _reaches(start: Group, goal: Group, reads: Mapping[Group, Iterable[Group]]) -> bool:
    """Whether `start` depends on `goal`."""
    seen: set[Group] = set()
    pending = [start]
    while pending:
        group = pending.pop()
        if group is goal:
            return True
        if group not in seen:
            seen.add(group)
            pending.extend(reads[group])
    return False
