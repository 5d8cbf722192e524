"""Partial data propagation: what is known of small integer tensors, such as shapes, before anything runs.

An element is a number, the name of a symbolic dimension (an unknown extent of 0 or more), or None where
nothing is known. So a vector of which some elements are known keeps them:

    Concat(Gather(Shape(x), 0), [-1], [64])  of x: [N, 197, 768]  →  ["N", -1, 64]

and the usual guard of an export, Where(Equal(shape, -1), ones, shape), is `shape` again, for an extent is
never -1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from onward.graph.types import Array, Dim, dims_of

__all__ = ["Elements", "elements_of", "expanded_dims", "propagated", "reshaped_dims"]

Elements: TypeAlias = "tuple[Dim, ...] | Dim"
"""The elements of a vector; one that is not in a tuple is a scalar's."""

_MOST = 64
"""Elements that are looked at: more than any shape has."""


def elements_of(array: Array) -> Elements | None:
    """The elements of a constant: integers or booleans of at most one axis; None for other tensors."""
    if array.dtype.kind not in "iub" or array.ndim > 1 or array.size > _MOST:
        return None
    return int(array) if array.ndim == 0 else tuple(int(n) for n in array)


def propagated(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
    """What a node of the standard gives, as far as it follows from elements that are known; else None."""
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    return None if rule is None else rule(node, known)


def reshaped_dims(data: Sequence[Dim] | None, shape: Elements, *, allowzero: bool) -> tuple[Dim, ...] | None:
    """The dimensions of Reshape's output: extents of 0 are copied, one of -1 is what remains."""
    if not isinstance(shape, tuple):
        return None
    wanted: list[Dim] = list(shape)
    if not allowzero:
        for i, n in enumerate(wanted):
            if n == 0:
                wanted[i] = data[i] if data is not None and i < len(data) else None
    if -1 in wanted:
        at = wanted.index(-1)
        others = [n for i, n in enumerate(wanted) if i != at]
        wanted[at] = None if data is None else _quotient(data, others)
    return tuple(wanted)


def expanded_dims(data: Sequence[Dim] | None, shape: Elements) -> tuple[Dim, ...] | None:
    """The dimensions of Expand's output: those of data broadcast with the shape asked for."""
    if data is None or not isinstance(shape, tuple):
        return None
    rank = max(len(data), len(shape))
    have = (*[1] * (rank - len(data)), *data)
    want = (*[1] * (rank - len(shape)), *shape)
    return tuple(_broadcast(h, w) for h, w in zip(have, want, strict=True))


def _broadcast(a: Dim, b: Dim) -> Dim:
    for one, other in ((a, b), (b, a)):
        if one == 1:
            return other
        if isinstance(one, int) and one != 0:
            return one
    return a if a == b else None


def _quotient(whole: Sequence[Dim], parts: Sequence[Dim]) -> Dim:
    """The product of `whole` by that of `parts`, where names cancel and one factor is left."""
    if None in whole or None in parts:
        return None
    above = Counter(n for n in whole if isinstance(n, str))
    below = Counter(n for n in parts if isinstance(n, str))
    left = list((above - below).elements())
    if below - above or len(left) > 1:
        return None
    top = math.prod(n for n in whole if isinstance(n, int))
    bottom = math.prod(n for n in parts if isinstance(n, int))
    if bottom == 0 or top % bottom:
        return None
    factor = top // bottom
    if not left:
        return factor
    return left[0] if factor == 1 else None


_Rule: TypeAlias = "Callable[[ir.Node, Mapping[ir.Value, Elements]], Elements | None]"


def _operand(node: ir.Node, known: Mapping[ir.Value, Elements], index: int) -> Elements | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else known.get(value)


def _vector(node: ir.Node, known: Mapping[ir.Value, Elements], index: int) -> tuple[Dim, ...] | None:
    found = _operand(node, known, index)
    return found if isinstance(found, tuple) else None


def _numbers(elements: Elements | None) -> list[int] | None:
    """Elements that are all numbers."""
    found = elements if isinstance(elements, tuple) else (elements,)
    numbers = [n for n in found if isinstance(n, int)]
    return numbers if len(numbers) == len(found) else None


def _shape(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
    dims = None if node.inputs[0] is None else dims_of(node.inputs[0])
    if dims is None:
        return None
    end = node.attributes.get("end")
    return dims[node.attributes.get_int("start", 0) : None if end is None else end.as_int()]


def _same(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
    return _operand(node, known, 0)


def _cast(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
    to = ir.DataType(node.attributes.get_int("to", 0))
    return _operand(node, known, 0) if to in (ir.DataType.INT32, ir.DataType.INT64) else None


def _gather(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
    data, picked = _vector(node, known, 0), _operand(node, known, 1)
    places = _numbers(picked)
    if data is None or places is None or any(not -len(data) <= i < len(data) for i in places):
        return None
    found = tuple(data[i] for i in places)
    return found if isinstance(picked, tuple) else found[0]


def _slice(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
    data = _vector(node, known, 0)
    operands = [_operand(node, known, i) for i in range(1, len(node.inputs))]
    numbers = [_numbers(found) for found in operands]
    if data is None or len(numbers) < 2:
        return None
    axes, steps = ([*numbers[2:], None, None])[:2]
    if any(v is not None and n is None for v, n in zip(node.inputs[3:], numbers[2:], strict=False)):
        return None
    if (axes is not None and axes not in ([0], [-1])) or steps not in (None, [1]):
        return None
    start, end = numbers[:2]
    return None if start is None or end is None or len(start) != 1 else data[start[0] : end[0]]


def _concat(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
    found: list[Dim] = []
    for i, value in enumerate(node.inputs):
        part = _vector(node, known, i)
        if part is None:
            dims = None if value is None else dims_of(value)
            if dims is None or len(dims) != 1 or not isinstance(dims[0], int) or dims[0] > _MOST:
                return None
            part = (None,) * dims[0]
        found += part
    return tuple(found) if len(found) <= _MOST else None


def _unsqueeze(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
    found = _operand(node, known, 0)
    dims = dims_of(node.outputs[0])
    return None if isinstance(found, tuple) or found is None or dims != (1,) else (found,)


def _squeeze(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
    found = _vector(node, known, 0)
    return None if found is None or len(found) != 1 else found[0]


def _reshape(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
    found, dims = _operand(node, known, 0), dims_of(node.outputs[0])
    if found is None or dims is None or len(dims) > 1:
        return None
    flat = found if isinstance(found, tuple) else (found,)
    if dims == ():
        return flat[0] if len(flat) == 1 else None
    return flat


def _elementwise(rule: Callable[..., Dim]) -> _Rule:
    def of_node(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
        dims = [None if v is None else dims_of(v) for v in node.inputs]
        operands = [_operand(node, known, i) for i in range(len(node.inputs))]
        lengths = set[int]()
        for operand, dim in zip(operands, dims, strict=True):
            if operand is None and (dim is None or len(dim) > 1 or not all(isinstance(d, int) for d in dim)):
                return None
            if dim:
                assert isinstance(dim[0], int)
                lengths.add(dim[0])
            elif isinstance(operand, tuple):
                lengths.add(len(operand))
        if len(lengths - {1}) > 1 or any(n > _MOST for n in lengths):
            return None
        if not lengths:
            return rule(*operands)
        count = max(lengths - {1}, default=1)
        columns = [o if isinstance(o, tuple) else (o,) for o in operands]
        if any(len(c) not in (1, count) for c in columns):
            return None
        wide = [c if len(c) == count else c * count for c in columns]
        return tuple(rule(*row) for row in zip(*wide, strict=True))

    return of_node


def _fits(n: int) -> int | None:
    return n if -(2**63) <= n < 2**63 else None


def _add(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return _fits(a + b)
    return b if a == 0 else a if b == 0 else None


def _sub(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return _fits(a - b)
    return a if b == 0 else None


def _mul(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return _fits(a * b)
    if 0 in (a, b):
        return 0
    return b if a == 1 else a if b == 1 else None


def _div(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int) and b != 0:
        quotient = abs(a) // abs(b)  # towards zero
        return _fits(quotient if (a < 0) == (b < 0) else -quotient)
    return a if b == 1 else None


def _equal(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    for one, other in ((a, b), (b, a)):
        if isinstance(one, str) and isinstance(other, int) and other < 0:
            return 0  # an extent is not negative
    return None


def _where(condition: Dim, a: Dim, b: Dim) -> Dim:
    if not isinstance(condition, int):
        return a if a == b else None
    return a if condition else b


def _constant_of_shape(node: ir.Node, known: Mapping[ir.Value, Elements]) -> Elements | None:
    shape = _numbers(_vector(node, known, 0))
    if shape is None or len(shape) > 1 or (shape and shape[0] > _MOST):
        return None
    value = node.attributes.get("value")
    if value is None:
        return None
    array = value.as_tensor().numpy()
    if array.dtype.kind not in "iub" or array.size != 1:
        return None
    content = int(array.reshape(()))
    return (content,) * shape[0] if shape else content


_RULES: dict[str, _Rule] = {
    "Add": _elementwise(_add),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(_div),
    "Equal": _elementwise(_equal),
    "Gather": _gather,
    "Identity": _same,
    "Mul": _elementwise(_mul),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(_sub),
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise(_where),
}
