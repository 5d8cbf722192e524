"""Index arithmetic of the gather and scatter operators."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onward.graph import Array

__all__ = [
    "REDUCTIONS",
    "add_rows",
    "grid_along",
    "linear_along",
    "linear_nd",
    "progression",
    "put",
    "scatter",
    "wrapped",
]

REDUCTIONS = ("none", "add", "mul", "max", "min")
"""What scatter operators do with an element and its update; loops take the position."""


def wrapped(indices: Array, extent: int) -> Array:
    """Indices with negative ones counted from the end.

    Raises:
        IndexError: an index is outside [-extent, extent).
    """
    if indices.size and (indices.min() < -extent or indices.max() >= extent):
        worst = indices.min() if indices.min() < -extent else indices.max()
        raise IndexError(f"index {int(worst)} is out of range for extent {extent}")
    return np.where(indices < 0, indices + extent, indices).astype(np.intp, copy=False)


def progression(indices: Array | None, extent: int) -> range | None:
    """Known indices of at most one axis as a range of positions in steps that are equal; None for others."""
    if indices is None or indices.ndim > 1 or indices.size == 0:
        return None
    if indices.min() < -extent or indices.max() >= extent:
        return None
    found = wrapped(indices, extent).reshape(-1)
    step = int(found[1] - found[0]) if found.size > 1 else 1
    if step == 0 or np.any(np.diff(found) != step):
        return None
    first = int(found[0])
    return range(first, first + step * found.size, step)


def grid_along(indices: Array, axis: int, extent: int) -> tuple[Any, ...]:
    """Subscripts that pick, at each position of `indices`, the element at that position but for one axis."""
    grid: list[Any] = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
    grid[axis] = wrapped(indices, extent)
    return tuple(grid)


def linear_along(shape: tuple[int, ...], indices: Array, axis: int) -> Array:
    """Positions in a flattened array of `shape` that `grid_along` picks."""
    grid = grid_along(indices, axis, shape[axis])
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    position = sum(g * s for g, s in zip(grid, strides, strict=True))
    return np.broadcast_to(np.asarray(position, np.intp), indices.shape)


def linear_nd(shape: tuple[int, ...], indices: Array, batch_dims: int = 0) -> Array:
    """Positions in an array of `shape`, its trailing axes flattened, that index tuples pick.

    Args:
        shape: of the array.
        indices: tuples along the last axis; they index the axes after `batch_dims`.
        batch_dims: how many leading axes the array and the indices share.
    """
    depth = indices.shape[-1]
    outer = indices.shape[:-1]
    position = np.zeros(outer, np.intp)
    for i in range(batch_dims):
        along = np.arange(shape[i]).reshape([-1 if j == i else 1 for j in range(len(outer))])
        position = position * shape[i] + along
    for i in range(depth):
        extent = shape[batch_dims + i]
        position = position * extent + wrapped(indices[..., i], extent)
    return position


def add_rows(rows: Array, positions: Array, values: Array) -> None:
    """Add values[i] to rows[positions[i]], in a fixed order where positions repeat.

    Args:
        rows: a matrix, changed in place.
        positions: a vector of row numbers.
        values: a matrix with a row for each position.
    """
    if positions.size == 0 or values.size == 0:
        return
    if rows.shape[1] == 1:
        np.add.at(rows[:, 0], positions, values[:, 0])
        return
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    if len(starts) == len(ordered):
        rows[positions] += values
    else:
        rows[ordered[starts]] += np.add.reduceat(values[order], starts, axis=0)


def scatter(flat: Array, positions: Array, values: Array, reduction: str) -> None:
    """Write values into rows of a matrix, or combine them with what is there.

    Args:
        flat: a matrix, changed in place.
        positions: a vector of row numbers.
        values: a matrix with a row for each position.
        reduction: none, add, mul, max or min; of repeated positions `none` keeps the last.
    """
    match reduction:
        case "none":
            flat[positions] = values
        case "add":
            add_rows(flat, positions, values)
        case "mul":
            np.multiply.at(flat, positions, values)
        case "max":
            np.maximum.at(flat, positions, values)
        case "min":
            np.minimum.at(flat, positions, values)
        case _:
            raise ValueError(f"unknown reduction {reduction!r}; it is none, add, mul, max or min")


def put(y: Array, at: int, new: float, how: int) -> None:
    """Replace an element, or combine it with another, by the number of a reduction: for loops."""
    if how == 0:
        y.flat[at] = new
    elif how == 1:
        y.flat[at] += new
    elif how == 2:
        y.flat[at] *= new
    elif new != new or (new > y.flat[at] if how == 3 else new < y.flat[at]):
        y.flat[at] = new
