"""Counters and positions: arithmetic and comparisons of int64."""

from __future__ import annotations

import functools
from math import prod

import numpy as np

from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels import scalars
from onward.compile.registry import lowers
from onward.graph.requests import Integers

__all__: list[str] = []

_integers = functools.lru_cache(64)(scalars.integers)


def _unsuited(q: Queries, request: Integers) -> str | None:
    y, a, b = request.y, request.a, request.b
    if any(q.dtype(v) != np.int64 for v in (a, b)):
        return f"{q.dtype(a)} and {q.dtype(b)}"
    if reason := q.empty(y):
        return reason
    if any(prod(q.shape(v)) != 1 and q.shape(v) != q.shape(y) for v in (a, b)):
        return "integers that are broadcast"
    if request.op in ("div", "mod"):
        divisor = q.known(b)
        if divisor is None or np.any((divisor == 0) | (divisor == -1)):
            return "a divisor that is not known, 0 or -1"
    return None


@lowers(Integers, suits=_unsuited)
def integers(c: Context, request: Integers) -> None:
    """One thread's loop: operands have y's shape or one element."""
    left, right = c.plain(request.a), c.plain(request.b)
    steps = (int(left.size > 1), int(right.size > 1))
    slots: dict[str, Slot] = {"a": left, "b": right, "y": c.new_plain(request.y)}
    c.call(_integers(request.op, prod(c.shape(request.y)), steps, c.target), slots)
