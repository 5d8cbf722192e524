"""What the data-movement operators ask of the graph: ranks, axes, contents known before anything runs."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, dims_of
from onward.graph.requests import misfit_of

__all__ = ["constant_of", "like", "normalized", "over_trailing_axes", "rank_of", "require_shape", "split_at"]


def constant_of(value: ir.Value | None) -> Array | None:
    """The contents of a value that is constant in the graph, else None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def like(value: ir.Value, x: ir.Value) -> ir.Value:
    """A new value, known to have x's shape, also where inference could not tell."""
    value.shape = None if x.shape is None else x.shape.copy()
    return value


def rank_of(value: ir.Value) -> int:
    """The number of dimensions of a value.

    Raises:
        UnsupportedError: it is not known.
    """
    dims = dims_of(value)
    if dims is None:
        raise UnsupportedError(f"the gradient needs the rank of {value.name!r}, which is not known")
    return len(dims)


def normalized(axis: int, rank: int) -> int:
    """A non-negative axis.

    Raises:
        ValueError: the axis is out of range.
    """
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is out of range for {rank} dimensions")
    return axis % rank


def over_trailing_axes(g: Builder, op_type: str, x: ir.Value, axis: int) -> ir.Value:
    """An operator along one axis, applied to all axes from `axis` on as if they were one."""
    dims = dims_of(x)
    if dims is not None and axis in (-1, len(dims) - 1):
        return g.emit(op_type, x, axis=-1)[0]
    rows = g.Flatten(x, axis=axis)
    return g.reshape_like(g.emit(op_type, rows, axis=-1)[0], x)


def split_at(x: Array, axis: int) -> Array:
    """x as a matrix: the axes before `axis` make the rows, the others the columns."""
    axis = axis + x.ndim if axis < 0 else axis
    if not 0 <= axis <= x.ndim:
        raise ValueError(f"axis {axis} is out of range for {x.ndim} dimensions")
    return np.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def require_shape(name: str, array: Array | None, wanted: tuple[int | None, ...]) -> None:
    """Refuse an operand of another shape, where NumPy would broadcast or cut it; None is any extent.

    Raises:
        ShapeError: it is not as wanted.
    """
    if array is not None and (reason := misfit_of(name, array.shape, wanted)) is not None:
        raise ShapeError(reason)
