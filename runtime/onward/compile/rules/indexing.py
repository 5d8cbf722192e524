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
from onward.compile.registry import lowers
from onward.graph.requests import Gather, GatherGradient

__all__: list[str] = []

_gather = functools.lru_cache(256)(kernels.gather_rows)
_scatter = functools.lru_cache(256)(kernels.scatter_rows)
_clear = functools.lru_cache(8)(copies.clear)


def _unsuited(q: Queries, table: ir.Value, indices: ir.Value, axis: int, *floats: ir.Value) -> str | None:
    if reason := q.not_floats(*floats) or q.empty(table, indices):
        return reason
    if axis % len(q.shape(table)) != 0 or q.dtype(indices) != np.int64:
        return "only the first axis by int64 indices"
    return None


def _gather_unsuited(q: Queries, request: Gather) -> str | None:
    return _unsuited(q, request.data, request.indices, request.axis, request.data)


@lowers(Gather, suits=_gather_unsuited)
def gather(c: Context, request: Gather) -> None:
    """A row of the table for each index."""
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
