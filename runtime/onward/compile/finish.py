"""Element-wise operations that a producing kernel computes before it stores its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onward.compile.groups import Group
from onward.compile.kernels.expression import Expression, operand
from onward.compile.kernels.tile import ACCUMULATOR, Epilogue
from onward.compile.rules.element import expressions
from onward.compile.tensors import Tensor

if TYPE_CHECKING:
    from onward.compile.lowering import Lowering

__all__ = ["Finish", "finish_for"]


@dataclass(frozen=True, eq=False)
class Finish:
    """What a producing kernel does with its results.

    Attributes:
        target: where they go.
        expression: what is stored, given the result and the number of the first further operand.
        operands: further operands: "channel", a vector over channels, or "full", in the target's layout.
    """

    target: Tensor
    expression: Callable[[Expression, int], Expression] = lambda result, _: result
    operands: tuple[tuple[str, Tensor], ...] = ()

    def epilogue(self, bias: Tensor | None) -> tuple[Epilogue, tuple[Tensor, ...]]:
        """The kernel's epilogue with a bias over channels added first, and its operands."""
        kinds = tuple(kind for kind, _ in self.operands)
        tensors = tuple(tensor for _, tensor in self.operands)
        if bias is None:
            return Epilogue(self.expression(ACCUMULATOR, 1), kinds), tensors
        return Epilogue(self.expression(ACCUMULATOR + operand(1), 2), ("channel", *kinds)), (bias, *tensors)


def finish_for(b: Lowering, value: ir.Value, group: Group) -> Finish | None:
    """How the kernel that produces `value` can compute `group`, its only reader; None if it cannot.

    The group must have one result, of the value's layout, and operands that the kernel can walk along.
    """
    if any(o.operator.element_scalars for o in group.operations):
        return None
    inside = {v for o in group.operations for v in o.outputs}
    wanted = [v for v in inside if b.uses.escapes(v, group)]
    if len(wanted) != 1 or b.program.dtypes[wanted[0]] != np.float32:
        return None
    (result,) = wanted
    if b.has_image(value) != b.has_image(result):
        return None
    others = [v for v in group.inputs if v is not value]
    numbers = {v: n for v in others if (n := b.number(v)) is not None}
    variable = [v for v in others if v not in numbers]
    kinds = [_kind(b, v, value, result) for v in variable]
    if any(kind is None for kind in kinds):
        return None
    operands = tuple(
        (kind or "", b.either(v) if kind == "full" else b.plain(v))
        for kind, v in zip(kinds, variable, strict=True)
    )

    def expression(accumulator: Expression, first: int) -> Expression:
        places = {value: accumulator, **numbers}
        places |= {v: operand(first + i) for i, v in enumerate(variable)}
        return expressions(b, group.operations, places, [])[result]

    return Finish(b.new(result), expression, operands)


def _kind(b: Lowering, value: ir.Value, produced: ir.Value, result: ir.Value) -> str | None:
    """How the producing kernel can read an operand of the group."""
    shape, full = b.shape(value), b.shape(produced)
    if b.program.dtypes[value] != np.float32:
        return None
    if shape == full:
        return "full" if b.geometry(value) == b.geometry(result) else None
    channel = 1 if b.has_image(produced) else len(full) - 1
    axis = channel - (len(full) - len(shape))
    if axis < 0 or shape[axis] != full[channel] or prod(shape) != full[channel]:
        return None
    return "channel"
