from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, dtype_of, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._shape import constant_of


@op("Trilu", since=14)
class Trilu(Op):
    """The upper or lower triangle of each matrix, from the k-th diagonal on; zeros elsewhere."""

    static_operands = ("k",)

    upper: int = 1

    def kernel(self, input: Array, k: Array | None = None) -> Array:
        diagonal = 0 if k is None else _within(int(k.reshape(-1)[0]), input.shape)
        return np.triu(input, diagonal) if self.upper else np.tril(input, diagonal)

    def lower(
        self, static: Static, outputs: Values, input: ir.Value, k: ir.Value | None = None
    ) -> requests.Body | requests.Unsupported:
        if k is not None and static.known(k) is None:
            return requests.Unsupported("a diagonal that is not constant")
        return requests.Body()

    def expand(self, g: Builder, input: ir.Value, k: ir.Value | None = None) -> ir.Value:
        """A choice by the distance of rows and columns."""
        shape, diagonal = static_shape(input), 0 if k is None else constant_of(k)
        assert shape is not None
        assert diagonal is not None
        rows = g.const(
            np.arange(shape[-2])[:, None] + _within(int(np.reshape(diagonal, (-1,))[0]), shape), np.int64
        )
        columns = g.const(np.arange(shape[-1]), np.int64)
        kept = (g.GreaterOrEqual if self.upper else g.LessOrEqual)(columns, rows)
        return g.Where(kept, input, g.const(0, dtype_of(input)))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value, k: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        return g.Trilu(dy, k, upper=self.upper), None


def _within(diagonal: int, shape: Sequence[int]) -> int:
    """The diagonal, or the nearest one that has no element where it lies further outside."""
    return min(max(diagonal, -shape[-2]), shape[-1])
