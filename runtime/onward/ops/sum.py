from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op


@op("Sum", since=(1, 6, 8, 13))
class Sum(Op):
    """The sum of its operands, element by element."""

    def kernel(self, *data_0: Array) -> Array:
        return functools.reduce(np.add, data_0)

    def element(self, *operands: Expression) -> Expression:
        return functools.reduce(lambda a, b: a + b, operands)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, *data_0: ir.Value) -> tuple[ir.Value, ...]:
        return (dy,) * len(data_0)
