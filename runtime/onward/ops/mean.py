from __future__ import annotations

import functools
import operator

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import widened


@op("Mean", since=(1, 6, 8, 13))
class Mean(Op):
    """The mean of its operands, element by element."""

    @widened
    def kernel(self, *data_0: Array) -> Array:
        return functools.reduce(np.add, data_0) / len(data_0)

    def element(self, *data_0: Expression) -> Expression:
        return functools.reduce(operator.add, data_0) / float(len(data_0))

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, *data_0: ir.Value) -> tuple[ir.Value, ...]:
        return (g.Mul(dy, 1.0 / len(data_0)),) * len(data_0)
