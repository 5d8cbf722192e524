"""Gather (embedding lookup): rows of tables by index, and the gradient that adds them back."""

from __future__ import annotations

import functools
from math import prod

import numpy as np
import onnx_ir as ir

from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels import copy as copies
from onward.compile.kernels import embedding as kernels
from onward.compile.kernels import take as takes
from onward.compile.registry import lowers
from onward.compile.tensors import taken
from onward.graph.requests import Gather, GatherGradient, Take

__all__: list[str] = []

_gather = functools.lru_cache(256)(kernels.gather_rows)
_scatter = functools.lru_cache(256)(kernels.scatter_rows)
_take = functools.lru_cache(256)(takes.take)
_clear = functools.lru_cache(8)(copies.clear)


def _unsuited(q: Queries, table: ir.Value, indices: ir.Value, axis: int, *floats: ir.Value) -> str | None:
    if reason := q.not_floats(*floats) or q.empty(table, indices):
        return reason
    if axis % len(q.shape(table)) != 0 or q.dtype(indices) != np.int64:
        return "only the first axis by int64 indices"
    return None


def _as_take(q: Queries, request: Gather) -> Take:
    """A gather along one axis."""
    rank, outer = len(q.shape(request.indices)), request.axis % len(q.shape(request.data))
    inner = len(q.shape(request.data)) - outer - 1
    return Take(
        request.y,
        request.data,
        request.indices,
        (*range(outer), *(None,) * rank, *range(outer + 1, outer + 1 + inner)),
        (*(None,) * outer, *range(rank), *(None,) * inner),
        (outer,),
    )


def _gather_unsuited(q: Queries, request: Gather) -> str | None:
    return _take_unsuited(q, _as_take(q, request))


@lowers(Gather, suits=_gather_unsuited)
def gather(c: Context, request: Gather) -> None:
    """A row of the table for each index; along other axes, an element at a time."""
    if _unsuited(c, request.data, request.indices, request.axis, request.data) is not None:
        take(c, _as_take(c, request))
        return
    rows, *rest = c.shape(request.data)
    table, index = c.plain(request.data), c.plain(request.indices)
    c.check_indices(index, rows)
    slots: dict[str, Slot] = {
        "table": table,
        "index": index,
        "y": c.new_plain(request.y),
        "batch": index.size,
    }
    c.call(_gather(rows, prod(rest), c.typed(table.dtype)), slots, batch=index.size)


def _take_unsuited(q: Queries, request: Take) -> str | None:
    if reason := q.empty(request.data, request.indices):
        return reason
    if q.dtype(request.indices).name not in ("int32", "int64"):
        return f"indices of {q.dtype(request.indices)}"
    dtype = q.dtype(request.data)
    return f"elements of {dtype}" if dtype.kind == "O" or dtype.itemsize not in (1, 2, 4, 8) else None


@lowers(Take, suits=_take_unsuited)
def take(c: Context, request: Take) -> None:
    """An element at a time, from data where it is."""
    data, indices = c.present(request.data), c.plain(request.indices)
    picked = []
    for number, axis in enumerate(request.picked):
        component = taken(indices, len(indices.shape) - 1, number) if request.tuples else indices
        c.check_indices(component, data.shape[axis])
        picked.append((number, data.strides[axis], data.shape[axis]))
    shape = c.shape(request.y)
    along = [
        tuple(0 if axis is None else tensor.strides[axis] for axis in axes) or (0,)
        for tensor, axes in ((data, request.data_axes), (indices, request.index_axes))
    ]
    spec = takes.Take(
        shape[1:], along[0], along[1], tuple(picked), data.dtype.itemsize, indices.dtype == np.int64
    )
    batch = shape[0] if shape else 1
    slots: dict[str, Slot] = {"data": data, "indices": indices, "y": c.new_plain(request.y), "batch": batch}
    c.call(_take(spec, c.target), slots, batch=batch)


def _scatter_unsuited(q: Queries, request: GatherGradient) -> str | None:
    return _unsuited(q, request.ddata, request.indices, request.axis, request.dy)


@lowers(GatherGradient, suits=_scatter_unsuited)
def scatter(c: Context, request: GatherGradient) -> None:
    """Zeros, then a row added for each index."""
    rows, *rest = shape = c.shape(request.ddata)
    gradient, index = c.plain(request.dy), c.plain(request.indices)
    c.check_indices(index, rows)
    target = c.new_plain(request.ddata)
    c.call(_clear(c.typed(gradient.dtype)), {"y": target, "batch": prod(shape)}, batch=prod(shape))
    slots: dict[str, Slot] = {"dy": gradient, "index": index, "dtable": target, "batch": index.size}
    c.call(_scatter(rows, prod(rest), c.typed(gradient.dtype)), slots, batch=index.size)
