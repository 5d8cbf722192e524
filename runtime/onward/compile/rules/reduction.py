"""Sums over axes: column reductions in two calls, which batch normalization and losses are made of, too."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from onward.compile.context import Context
from onward.compile.items import Slot
from onward.compile.kernels import reduce as kernels
from onward.compile.kernels.element import Operand
from onward.compile.kernels.expression import Expression
from onward.compile.kernels.reduce import Columns, Finish
from onward.compile.tensors import Tensor

__all__ = ["reduce_in_two", "reduce_to_columns"]

_columns = functools.lru_cache(512)(kernels.reduce_columns)
_finish = functools.lru_cache(512)(kernels.finish_columns)


def reduce_to_columns(
    c: Context,
    sizes: Sequence[int],
    operands: Sequence[tuple[Tensor, tuple[int, ...]]],
    expressions: Sequence[Expression],
    more: Sequence[Tensor],
    results: Sequence[Tensor],
    finals: Sequence[Expression],
    everything: bool = False,
    how: str = "sum",
) -> None:
    """Combine expressions over [batch, *shape] to columns; results are `finals` of those and `more`."""
    spec = Columns(
        tuple(sizes[1:]),
        tuple(Operand(s, t.dtype.name) for t, s in operands),
        tuple(expressions),
        (how,) * len(expressions),
        everything,
        results[0].dtype.name,
    )
    width = 0 if everything else 1
    finish = Finish(
        tuple(0 if t.size == 1 and not (width and spec.shape[-1] == 1) else 1 for t in more),
        (width,) * len(results),
        tuple(finals),
    )
    reduce_in_two(c, sizes, spec, operands, finish, more, results)


def reduce_in_two(
    c: Context,
    sizes: Sequence[int],
    spec: Columns,
    operands: Sequence[tuple[Tensor, tuple[int, ...]]],
    finish: Finish,
    more: Sequence[Tensor],
    results: Sequence[Tensor],
) -> None:
    """Each thread's share, then the whole in thread order."""
    partial = c.scratch(kernels.partial_size(spec, c.target, c.threads), np.dtype(spec.dtype))
    tensors = [t for t, _ in operands]
    slots: dict[str, Slot] = {f"x{i}": t for i, t in enumerate(tensors)}
    slots |= {"partial": partial, "batch": sizes[0]}
    c.call(_columns(spec, c.target), slots, batch=sizes[0])
    slots = {"partial": partial, "parts": c.threads}
    slots |= {f"x{i}": t for i, t in enumerate(more)} | {f"y{i}": t for i, t in enumerate(results)}
    c.call(_finish(spec, finish, c.target), slots)
