from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._shape import normalized, rank_of


@op("TensorScatter", since=24)
class TensorScatter(Op):
    """past_cache with update written along an axis, from each sample's write index on.

    In circular mode what goes beyond the end is written at the beginning; otherwise it is an error.
    """

    axis: int = -2
    mode: str = "linear"

    def kernel(self, past_cache: Array, update: Array, write_indices: Array | None = None) -> Array:
        axis = normalized(self.axis, past_cache.ndim)
        extent, count = past_cache.shape[axis], update.shape[axis]
        start = np.zeros(past_cache.shape[0], np.int64) if write_indices is None else write_indices
        steps = start.reshape(-1, 1) + np.arange(count)
        if self._circular():
            steps %= extent
        elif steps.size and (steps.min() < 0 or steps.max() >= extent):
            raise ValueError(f"update reaches beyond the extent {extent} of the cache's axis {axis}")
        result = past_cache.copy()
        view, new = np.moveaxis(result, axis, 1), np.moveaxis(update, axis, 1)
        view[np.arange(steps.shape[0])[:, None], steps] = new
        return result

    def lower(
        self,
        static: Static,
        outputs: Values,
        past_cache: ir.Value,
        update: ir.Value,
        write_indices: ir.Value | None = None,
    ) -> requests.Request:
        whole = static.shape(past_cache)
        axis = normalized(self.axis, len(whole))
        if axis == 0:
            return requests.Unsupported("the axis of the batch")
        shapes = [(update, (*whole[:axis], None, *whole[axis + 1 :]))]
        if write_indices is None:
            numbers = (axis, self._circular())
            return requests.Loop(
                (outputs[0],), (past_cache, update), _written_first, numbers, shapes=tuple(shapes)
            )
        shapes.append((write_indices, (whole[0],)))
        return requests.Loop(
            (outputs[0],),
            (past_cache, update, write_indices),
            _written,
            (axis, self._circular()),
            shapes=tuple(shapes),
        )

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        past_cache: ir.Value,
        update: ir.Value,
        write_indices: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        rank = rank_of(past_cache)
        axis = normalized(self.axis, rank)
        kept = g.TensorScatter(dy, g.zeros_like(update), write_indices, axis=self.axis, mode=self.mode)
        count = g.Squeeze(g.dim(update, axis), [0])
        steps = g.Range(g.const(0, np.int64), count, g.const(1, np.int64))
        positions = g.Unsqueeze(steps, [i for i in range(rank) if i != axis])
        if write_indices is not None:
            positions = g.Add(positions, g.Unsqueeze(write_indices, list(range(1, rank))))
        if self._circular():
            positions = g.Mod(positions, g.dim(past_cache, axis))
        return kept, g.GatherElements(dy, g.Expand(positions, g.shape(update)), axis=axis), None

    def _circular(self) -> bool:
        if self.mode not in ("linear", "circular"):
            raise UnsupportedError(f"mode {self.mode!r}: choose linear or circular")
        return self.mode == "circular"


def _written(
    thread: int, threads: int, y: Array, cache: Array, update: Array, first: Array, axis: int, circular: bool
) -> None:
    """Rows behind the axis are shared out."""
    row = 1
    for d in range(axis + 1, cache.ndim):
        row *= cache.shape[d]
    rows = cache.size // row
    for number in range(rows * thread // threads, rows * (thread + 1) // threads):
        sample = number // (rows // cache.shape[0])
        _row(y, cache, update, number, row, axis, first.flat[sample], circular)


def _written_first(
    thread: int, threads: int, y: Array, cache: Array, update: Array, axis: int, circular: bool
) -> None:
    row = 1
    for d in range(axis + 1, cache.ndim):
        row *= cache.shape[d]
    rows = cache.size // row
    for number in range(rows * thread // threads, rows * (thread + 1) // threads):
        _row(y, cache, update, number, row, axis, 0, circular)


def _row(
    y: Array, cache: Array, update: Array, number: int, row: int, axis: int, first: int, circular: bool
) -> None:
    """One row: of the update where it is written, else of the cache."""
    extent, count = cache.shape[axis], update.shape[axis]
    step = number % extent - first
    if circular:
        step %= extent
        if step < count:  # of steps that meet in a place, the last one counts
            step += (count - 1 - step) // extent * extent
    elif count > 0 and (first < 0 or first + count > extent):
        raise ValueError("update reaches beyond the cache")
    written = 0 <= step < count
    source = (number // extent * count + step) * row if written else number * row
    for i in range(row):
        y.flat[number * row + i] = update.flat[source + i] if written else cache.flat[source + i]
