from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, dtype_of, op


@op("Min", since=(1, 6, 8, 12, 13))
class Min(Op):
    """The smallest of its operands, element by element; NaN wins. Ties share the gradient."""

    def kernel(self, *data_0: Array) -> Array:
        return functools.reduce(np.minimum, data_0)

    def element(self, *operands: Expression) -> Expression:
        return functools.reduce(lambda a, b: a.apply("min", b), operands)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, *data_0: ir.Value) -> tuple[ir.Value, ...]:
        if len(data_0) == 1:
            return (dy,)
        chosen = [g.Equal(x, y) for x in data_0]
        share = g.Div(dy, g.Sum(*(g.Cast(mask, to=int(dtype_of(dy))) for mask in chosen)))
        return tuple(g.Where(mask, share, 0.0) for mask in chosen)
