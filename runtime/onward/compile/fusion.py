"""Operator fusion: lets a producing kernel compute the element-wise group after it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onward.compile.context import Context, Queries
from onward.compile.expressions import expressions
from onward.compile.groups import Group
from onward.compile.kernels.expression import Expression, operand
from onward.compile.write_back import WriteBack

__all__ = ["Fusion", "fusion"]


@dataclass(frozen=True, eq=False)
class Fusion:
    """A group that the kernel which produces `value` can compute.

    Attributes:
        value: the producer's result, which only the group reads.
        result: what the group keeps.
        operands: what else it reads, and how the kernel walks along each: "channel" or "full".
        numbers: what of that is constant.
    """

    value: ir.Value
    group: Group
    result: ir.Value
    operands: tuple[tuple[ir.Value, str], ...]
    numbers: dict[ir.Value, Expression]

    def write_back(self, c: Context) -> WriteBack:
        """How the kernel computes the group; operands are converted here, if need be."""
        operands = tuple((kind, c.either(v) if kind == "full" else c.plain(v)) for v, kind in self.operands)
        return WriteBack(c.new(self.result), self._expression, operands)

    def _expression(self, accumulator: Expression, first: int) -> Expression:
        places = {self.value: accumulator, **self.numbers}
        places |= {v: operand(first + i) for i, (v, _) in enumerate(self.operands)}
        return expressions(self.group.operations, places)[self.result]


def fusion(q: Queries, value: ir.Value, group: Group) -> Fusion | None:
    """How the kernel that produces `value` can compute `group`, its only reader; None if it cannot.

    The group must have one result, of the value's layout, and operands that the kernel can walk along.
    """
    inside = dict.fromkeys(v for o in group.operations for v in o.outputs)
    wanted = [v for v in inside if q.uses.escapes(v, group)]
    if len(wanted) != 1 or q.dtype(wanted[0]) != q.dtype(value) or q.not_floats(value):
        return None
    (result,) = wanted
    if q.has_image(value) != q.has_image(result):
        return None
    others = [v for v in group.inputs if v is not value]
    numbers = {v: n for v in others if (n := q.number(v)) is not None}
    operands: list[tuple[ir.Value, str]] = []
    for other in others:
        if other not in numbers:
            if (kind := _kind(q, other, value, result)) is None:
                return None
            operands.append((other, kind))
    return Fusion(value, group, result, tuple(operands), numbers)


def _kind(q: Queries, value: ir.Value, produced: ir.Value, result: ir.Value) -> str | None:
    """How the producing kernel can read an operand of the group."""
    shape, full = q.shape(value), q.shape(produced)
    if q.dtype(value) != q.dtype(produced):
        return None
    if shape == full:
        return "full" if q.geometry(value) == q.geometry(result) else None
    channel = 1 if q.has_image(produced) else len(full) - 1
    axis = channel - (len(full) - len(shape))
    if axis < 0 or shape[axis] != full[channel] or prod(shape) != full[channel]:
        return None
    return "channel"
