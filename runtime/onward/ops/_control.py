"""What If, Loop and Scan share: how types meet, and how what repeats is collected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Dim, dims_of, numpy_dtype

__all__ = [
    "Typed",
    "collected",
    "meeting",
    "of_elements",
    "per_iteration",
    "settled",
    "size_of",
    "typed",
]

Typed: TypeAlias = "tuple[ir.TypeProtocol | None, tuple[Dim, ...] | None]"


def typed(value: ir.Value) -> Typed:
    """A value's type and dimensions."""
    return value.type, dims_of(value)


def meeting(first: Typed, second: Typed) -> Typed:
    """What two types have in common: dimensions that differ are unknown."""
    kind, a = first
    other, b = second
    if a is None or b is None or len(a) != len(b):
        return kind if kind is not None else other, None
    return kind, tuple(x if x == y else None for x, y in zip(a, b, strict=True))


def settled(
    states: Sequence[Typed], iterate: Callable[[Sequence[Typed]], Sequence[Typed]], first: int
) -> tuple[list[Typed], Sequence[Typed]]:
    """The types that a loop's states have before every iteration, and those of an iteration's results.

    Args:
        states: before the first iteration.
        iterate: the types of an iteration's results, for states of these types.
        first: the place of the new states among the results.
    """
    found = list(states)
    while True:
        results = iterate(found)
        met = [meeting(a, b) for a, b in zip(found, results[first : first + len(found)], strict=True)]
        if met == found:
            return found, results
        found = met


def of_elements(of: Typed, axis: int, extent: Dim) -> Typed:
    """The type of tensors of a type collected along a new axis."""
    kind, dims = of
    if dims is None:
        return kind, None
    place = axis % (len(dims) + 1)
    return kind, (*dims[:place], extent, *dims[place:])


def per_iteration(value: ir.Value, axis: int) -> tuple[Typed, Dim]:
    """The type of a slice of a tensor along an axis, and the axis's extent."""
    kind, dims = typed(value)
    if dims is None:
        return (kind, None), None
    place = axis % len(dims)
    return (kind, (*dims[:place], *dims[place + 1 :])), dims[place]


def size_of(content: Any) -> int:
    """The bytes of a tensor or sequence."""
    if content is None:
        return 0
    if isinstance(content, list):
        return sum(map(size_of, content))
    return int(np.asarray(content).nbytes)


def collected(parts: Sequence[Array], of: ir.Value, axis: int) -> Array:
    """The results of all iterations along a new axis."""
    if parts:
        if any(part.shape != parts[0].shape for part in parts):
            raise ShapeError(f"output {of.name!r} changes its shape between iterations")
        return np.stack(parts, axis)
    dims = [d if isinstance(d, int) else 0 for d in dims_of(of) or ()]
    dtype = of.dtype if of.dtype is not None else ir.DataType.FLOAT
    return np.expand_dims(np.zeros(dims, numpy_dtype(dtype)), axis).take([], axis)
