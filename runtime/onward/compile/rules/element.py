"""Element-wise groups: one pass over memory for expressions of operands in any layouts that go together."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onward.compile.groups import Group
from onward.compile.kernels import element as kernels
from onward.compile.kernels.element import Element, Operand
from onward.compile.kernels.expression import Expression, operand
from onward.compile.placement import NotLoweredError
from onward.compile.program import Operation
from onward.compile.tensors import Buffer, Tensor, row_major

if TYPE_CHECKING:
    from onward.compile.items import Slot
    from onward.compile.lowering import Lowering

__all__ = ["Expressed", "elements", "expressed", "expressions", "lower_group", "store"]

_element = functools.lru_cache(4096)(kernels.element)


def elements(
    b: Lowering,
    shape: tuple[int, ...],
    operands: Sequence[Tensor],
    results: Sequence[Tensor],
    stored: Sequence[Expression],
    label: str | None = None,
) -> None:
    """One pass over elements: `stored` are the results as expressions of operands.

    Operands are broadcast to `shape`; vectors can run along each one's innermost axis.

    Raises:
        NotLoweredError: no order of the axes suits all layouts.
    """
    walk = _walk(shape, operands, results)
    sizes = walk.sizes
    spec = Element(
        sizes[1:],
        tuple(Operand(s, t.dtype.name) for s, t in zip(walk.strides, operands, strict=False)),
        tuple(Operand(s, t.dtype.name) for s, t in zip(walk.strides[len(operands) :], results, strict=True)),
        tuple(stored),
    )
    kernel = _element(spec, b.target)
    slots: dict[str, Slot] = {f"x{i}": t for i, t in enumerate(operands)}
    slots |= {f"y{i}": t for i, t in enumerate(results)}
    slots["batch"] = sizes[0]
    flat = len(sizes) == 1 and all(t.dtype == np.float32 for t in (*operands, *results))
    b.call(
        kernel,
        slots,
        reads=operands,
        writes=results,
        batch=sizes[0],
        label=label,
        element=spec if flat else None,
    )


def lower_group(b: Lowering, group: Group) -> None:
    """One pass that computes a group's operations and stores what others read."""
    shape = group.shape or ()
    made = (v for o in group.operations for v in o.outputs)
    _pass(b, group.operations, shape, [v for v in made if b.uses.escapes(v, group)])


def store(b: Lowering, operations: Sequence[Operation], values: Sequence[ir.Value | None]) -> None:
    """One pass that stores those values which element-wise operations of one shape make."""
    made = [v for o in operations for v in o.outputs if v in values]
    _pass(b, operations, b.shape(made[0]), made)


def _pass(
    b: Lowering, operations: Sequence[Operation], shape: tuple[int, ...], wanted: Sequence[ir.Value]
) -> None:
    if 0 in shape:
        b.decline("no elements")
    tensors: list[Tensor] = []
    made = _computed(b, operations, shape, tensors)
    b.elements(shape, tensors, [b.new(v) for v in wanted], [made[v] for v in wanted])


@dataclass(frozen=True, eq=False)
class Expressed:
    """Values of one shape as expressions of tensors.

    Attributes:
        tensors: what the expressions' operands are.
        expressions: one for each value.
        sizes: of the values' axes, channels last where the values are kept so.
        strides: of each tensor along these axes, 0 where it is broadcast.
    """

    tensors: list[Tensor]
    expressions: list[Expression]
    sizes: tuple[int, ...]
    strides: list[tuple[int, ...]]


def expressed(b: Lowering, operations: Sequence[Operation], values: Sequence[ir.Value]) -> Expressed:
    """Values of one shape, some of them made by element-wise operations; last strides are 0 or 1."""
    shape = b.shape(values[0])
    images = b.has_image(values[0])
    tensors: list[Tensor] = []
    made = _computed(b, operations, shape, tensors)
    for value in values:
        if value not in made:
            made[value] = operand(len(tensors))
            tensors.append(b.either(value))
    rank = len(shape)
    order = (0, *range(2, rank), 1) if images else tuple(range(rank))
    strides = [_broadcast(t, shape, order) for t in tensors]
    return Expressed(tensors, [made[v] for v in values], tuple(shape[a] for a in order), strides)


def _computed(
    b: Lowering, operations: Sequence[Operation], shape: tuple[int, ...], tensors: list[Tensor]
) -> dict[ir.Value, Expression]:
    """What operations over `shape` compute, with the operands added to `tensors`."""
    outside = _operands(operations)
    values = (*outside, *(v for o in operations for v in o.outputs))
    images = any(b.shape(v) == shape and b.has_image(v) for v in values)
    places: dict[ir.Value, Expression] = {}
    for value in outside:
        if (number := b.number(value)) is not None:
            places[value] = number
            continue
        place = operand(len(tensors))
        truth = b.program.dtypes[value] == np.bool_
        places[value] = place.apply("ne", 0.0) if truth else place
        tensors.append(_operand(b, value, shape, images))
    return {**places, **expressions(b, operations, places, tensors)}


def _operand(b: Lowering, value: ir.Value, shape: tuple[int, ...], images: bool) -> Tensor:
    """An operand of a group over `shape`, where it is if vectors can run along it there."""
    whole = images and b.shape(value) == shape and b.has_image(value)
    if whole and not b.is_strided(value):
        return b.image(value)
    found = b.present(value)
    if found.image is not None and not images:
        found = b.plain(value)
    order = _axis_order(shape, images)
    axis = order[-1] - (len(shape) - len(found.shape)) if order else -1
    if axis < 0 or found.shape[axis] == 1 or found.strides[axis] in (0, 1):
        return found
    if whole:
        return b.image(value)
    return _channels_last(b, value, axis) if images else b.plain(value)


def _channels_last(b: Lowering, value: ir.Value, channel: int) -> Tensor:
    """A copy of an operand that is broadcast against images, with its channels next to each other."""
    source = b.present(value)
    order = [a for a in range(len(source.shape)) if a != channel] + [channel]
    steps = row_major([source.shape[a] for a in order])
    strides = [0] * len(order)
    for axis, step in zip(order, steps, strict=True):
        strides[axis] = step
    target = replace(source, buffer=Buffer(source.nbytes), strides=tuple(strides), offset=0, image=None)
    b.copy(source, target)
    return target


def expressions(
    b: Lowering, operations: Sequence[Operation], places: Mapping[ir.Value, Expression], tensors: list[Tensor]
) -> dict[ir.Value, Expression]:
    """What each of some operations computes, given the expressions of what comes from outside.

    Scalars that an operator computes once for all elements are added to `tensors`.
    """
    made: dict[ir.Value, Expression] = {}
    for operation in operations:
        scalars = operation.operator.element_scalars
        arguments = [
            None if v is None or i in scalars else made[v] if v in made else places[v]
            for i, v in enumerate(operation.inputs)
        ]
        if scalars:
            for tensor in operation.operator.scalars(b, *(operation.inputs[i] for i in scalars)):  # type: ignore[attr-defined]
                arguments.append(operand(len(tensors)))
                tensors.append(tensor)
        found = operation.operator.element(*arguments)  # type: ignore[attr-defined]
        results = found if isinstance(found, tuple) else (found,)
        made.update(zip(operation.outputs, results, strict=False))
    return made


def _operands(operations: Sequence[Operation]) -> list[ir.Value]:
    """What the expressions of some operations read from outside."""
    made = {v for o in operations for v in o.outputs}
    found = (
        v
        for o in operations
        for i, v in enumerate(o.inputs)
        if v is not None and v not in made and i not in o.operator.element_scalars
    )
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _Walked:
    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def _axis_order(shape: tuple[int, ...], images: bool) -> list[int]:
    """Axes of more than one position, the innermost in memory last."""
    order = (0, *range(2, len(shape)), 1) if images else range(len(shape))
    return [a for a in order if shape[a] != 1]


def _walk(shape: tuple[int, ...], operands: Sequence[Tensor], results: Sequence[Tensor]) -> _Walked:
    """An order of the axes in which every operand's last stride is 0 or 1, and every result's 1."""
    tensors = [*operands, *results]
    whole = all(t.plain and t.shape == shape for t in tensors if t.size != 1)
    if whole:
        size = int(np.prod(shape))
        return _Walked((size,), tuple((0,) if t.size == 1 and size != 1 else (1,) for t in tensors))
    for images in (True, False) if any(t.image for t in tensors) else (False,):
        order = _axis_order(shape, images)
        strides = tuple(_broadcast(t, shape, order) for t in tensors)
        if all(s[-1] in (0, 1) for s in strides) and all(s[-1] == 1 for s in strides[len(operands) :]):
            return _Walked(tuple(shape[a] for a in order), strides)
    raise NotLoweredError("operands in layouts that do not go together")


def _broadcast(tensor: Tensor, shape: tuple[int, ...], order: Sequence[int]) -> tuple[int, ...]:
    lead = len(shape) - len(tensor.shape)
    full = [0] * lead + [0 if n == 1 else s for n, s in zip(tensor.shape, tensor.strides, strict=True)]
    return tuple(full[a] for a in order)
