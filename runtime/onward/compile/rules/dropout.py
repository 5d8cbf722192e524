"""Dropout by counter-based random numbers."""

from __future__ import annotations

import functools

import numpy as np

from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels import philox
from onward.compile.registry import lowers
from onward.compile.tensors import row_major
from onward.graph import requests

__all__: list[str] = []

_dropout = functools.lru_cache(256)(philox.dropout)


def _unsuited(q: Queries, request: requests.Dropout) -> str | None:
    if reason := q.not_floats(request.x) or q.empty(request.x):
        return reason
    if max(np.prod(q.shape(request.x), dtype=np.float64), 1) >= 2.0**32:
        return "more than 2**32 elements"
    return None


@lowers(requests.Dropout, suits=_unsuited)
def dropout(c: Context, request: requests.Dropout) -> None:
    """One pass over the elements in the order in which the result is kept."""
    shape = c.shape(request.x)
    rank = len(shape)
    source, order = c.either(request.x), tuple(range(rank))
    target = c.new(request.y)
    if target.image is not None:
        order = (0, *range(2, rank), 1)
    sizes = tuple(shape[a] for a in order) or (1,)
    x_strides, y_strides, position = (
        tuple(s[a] for a in order) or (1,) for s in (source.strides, target.strides, row_major(shape))
    )
    # One element along the last axis has no stride of its own.
    if sizes[-1] == 1:
        x_strides, y_strides = (*x_strides[:-1], 1), (*y_strides[:-1], 1)
    spec = philox.Dropout(
        sizes[1:],
        x_strides,
        y_strides,
        position,
        request.ratio,
        request.salt,
        source.dtype.name,
        request.share is not None,
    )
    slots: dict[str, Slot] = {"x": source, "y": target, "seed": c.plain(request.seed)}
    slots |= {"step": c.plain(request.step), "batch": sizes[0]}
    if request.share is not None:
        slots["share"] = c.plain(request.share)
    c.call(_dropout(spec, c.target), slots, batch=sizes[0])
