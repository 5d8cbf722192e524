"""Element-wise groups: one pass over memory for expressions of operands in any layouts that go together."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onward.compile.codegen.types import INTEGER_TYPES
from onward.compile.context import Context, Layout, Queries
from onward.compile.expressions import Elements, expressions, operands_of
from onward.compile.items import Slot
from onward.compile.kernels import element as kernels
from onward.compile.kernels.element import Element, Operand
from onward.compile.kernels.expression import Expression, operand
from onward.compile.program import Operation
from onward.compile.registry import lowers
from onward.compile.tensors import Buffer, Tensor, row_major

__all__ = ["Expressed", "elements", "expressed"]

_element = functools.lru_cache(4096)(kernels.element)


def elements(
    c: Context,
    shape: tuple[int, ...],
    operands: Sequence[Tensor],
    results: Sequence[Tensor],
    stored: Sequence[Expression],
) -> None:
    """One pass over elements: `stored` are the results as expressions of operands.

    Operands are broadcast to `shape`; vectors can run along each one's innermost axis in some order of the
    axes.
    """
    walk = _walk(shape, operands, results)
    assert walk is not None, "operands in layouts that do not go together"
    sizes = walk.sizes
    spec = Element(
        sizes[1:],
        tuple(Operand(s, t.dtype.name) for s, t in zip(walk.strides, operands, strict=False)),
        tuple(Operand(s, t.dtype.name) for s, t in zip(walk.strides[len(operands) :], results, strict=True)),
        tuple(stored),
        _arithmetic([*operands, *results]),
    )
    slots: dict[str, Slot] = {f"x{i}": t for i, t in enumerate(operands)}
    slots |= {f"y{i}": t for i, t in enumerate(results)}
    slots["batch"] = sizes[0]
    flat = len(sizes) == 1 and all(t.dtype == np.float32 for t in (*operands, *results))
    c.call(_element(spec, c.target), slots, batch=sizes[0], element=spec if flat else None)


def _arithmetic(tensors: Sequence[Tensor]) -> str:
    """The type that a pass computes in: the widest float that it reads or writes, or its integers."""
    kinds = {t.dtype.name for t in tensors} - {"bool"}
    if kinds and all(kind in INTEGER_TYPES for kind in kinds):
        (integer,) = kinds
        return integer
    return "float64" if "float64" in kinds else "float32"


def _unsuited(q: Queries, request: Elements) -> str | None:
    values = {v for o in request.operations for v in (*o.inputs, *o.outputs) if v is not None}
    if not q.target.converts_halves and any(q.dtype(v) == np.float16 for v in values):
        return "the processor does not convert float16"
    sources = [s for s in _sources(q, request.operations, request.shape) if s.number is None]
    operands = [s.layout(q) for s in sources]
    kept = [Layout.IMAGE if q.has_image(v) else Layout.PLAIN for v in request.outputs]
    results = [q.layout(v, how) for v, how in zip(request.outputs, kept, strict=True)]
    walk = _walk(request.shape, operands, results)
    return "operands in layouts that do not go together" if walk is None else None


@lowers(Elements, suits=_unsuited)
def group(c: Context, request: Elements) -> None:
    """One pass that computes the operations and stores what others read."""
    tensors: list[Tensor] = []
    made = _computed(c, request.operations, request.shape, tensors)
    results = [c.new(v) for v in request.outputs]
    elements(c, request.shape, tensors, results, [made[v] for v in request.outputs])


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


def expressed(c: Context, *values: ir.Value) -> Expressed:
    """Operands of one shape as expressions, those made by the site's element-wise operations computed from
    what these read; last strides are 0 or 1."""
    shape = c.shape(values[0])
    images = c.has_image(values[0])
    tensors: list[Tensor] = []
    made = _computed(c, c.elements, shape, tensors)
    for value in values:
        if value not in made:
            made[value] = operand(len(tensors))
            tensors.append(c.either(value))
    rank = len(shape)
    order = (0, *range(2, rank), 1) if images else tuple(range(rank))
    strides = [_broadcast(t, shape, order) for t in tensors]
    return Expressed(tensors, [made[v] for v in values], tuple(shape[a] for a in order), strides)


def _computed(
    c: Context, operations: Sequence[Operation], shape: tuple[int, ...], tensors: list[Tensor]
) -> dict[ir.Value, Expression]:
    """What operations over `shape` compute, with the operands added to `tensors`."""
    places: dict[ir.Value, Expression] = {}
    for source in _sources(c, operations, shape):
        if source.number is not None:
            places[source.value] = source.number
            continue
        place = operand(len(tensors))
        places[source.value] = place.apply("ne", 0.0) if c.dtype(source.value) == np.bool_ else place
        tensors.append(source.tensor(c))
    dtypes = {v: c.dtype(v) for o in operations for v in o.outputs}
    return {**places, **expressions(operations, places, dtypes)}


@dataclass(frozen=True, eq=False)
class _Source:
    """What a pass reads of an operand: a number, or a tensor in a layout.

    Where `channel` is given, it is a copy with that axis, the channels of what it is broadcast against, next
    to each other.
    """

    value: ir.Value
    wanted: Layout = Layout.PRESENT
    channel: int | None = None
    number: Expression | None = None

    def layout(self, q: Queries) -> Tensor:
        """The tensor that the pass would read."""
        found = q.layout(self.value, self.wanted)
        return found if self.channel is None else _channels_last(found, self.channel)

    def tensor(self, c: Context) -> Tensor:
        """The tensor, with the copy that it takes."""
        found = c.operand(self.value, self.wanted)
        if self.channel is None:
            return found
        target = _channels_last(found, self.channel)
        c.copy(found, target)
        return target


def _channels_last(source: Tensor, channel: int) -> Tensor:
    """Memory for a copy of an operand with one axis innermost."""
    order = [a for a in range(len(source.shape)) if a != channel] + [channel]
    steps = row_major([source.shape[a] for a in order])
    strides = [0] * len(order)
    for axis, step in zip(order, steps, strict=True):
        strides[axis] = step
    return replace(source, buffer=Buffer(source.nbytes), strides=tuple(strides), offset=0, image=None)


def _sources(q: Queries, operations: Sequence[Operation], shape: tuple[int, ...]) -> list[_Source]:
    """Where the operands of operations over `shape` are read, so that vectors can run along them."""
    outside = operands_of(operations)
    values = (*outside, *(v for o in operations for v in o.outputs))
    images = any(q.shape(v) == shape and q.has_image(v) for v in values)
    return [_source(q, value, shape, images) for value in outside]


def _source(q: Queries, value: ir.Value, shape: tuple[int, ...], images: bool) -> _Source:
    """Where it is, if vectors can run along it there; else a copy."""
    if (number := q.number(value)) is not None:
        return _Source(value, number=number)
    whole = images and q.shape(value) == shape and q.has_image(value)
    if whole and not q.is_strided(value):
        return _Source(value, Layout.IMAGE)
    found, wanted = q.layout(value, Layout.PRESENT), Layout.PRESENT
    if found.image is not None and not images:
        found, wanted = q.layout(value, Layout.PLAIN), Layout.PLAIN
    order = _axis_order(shape, images)
    axis = order[-1] - (len(shape) - len(found.shape)) if order else -1
    if axis < 0 or found.shape[axis] == 1 or found.strides[axis] in (0, 1):
        return _Source(value, wanted)
    if whole:
        return _Source(value, Layout.IMAGE)
    return _Source(value, Layout.PRESENT, channel=axis) if images else _Source(value, Layout.PLAIN)


@dataclass(frozen=True)
class _Walked:
    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def _axis_order(shape: tuple[int, ...], images: bool) -> list[int]:
    """Axes of more than one position, the innermost in memory last."""
    order = (0, *range(2, len(shape)), 1) if images else range(len(shape))
    return [a for a in order if shape[a] != 1]


def _walk(shape: tuple[int, ...], operands: Sequence[Tensor], results: Sequence[Tensor]) -> _Walked | None:
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
    return None


def _broadcast(tensor: Tensor, shape: tuple[int, ...], order: Sequence[int]) -> tuple[int, ...]:
    lead = len(shape) - len(tensor.shape)
    full = [0] * lead + [0 if n == 1 else s for n, s in zip(tensor.shape, tensor.strides, strict=True)]
    return tuple(full[a] for a in order)
