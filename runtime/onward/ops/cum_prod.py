from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._shape import constant_of, normalized, rank_of
from onward.ops.cum_sum import running, running_loop


@op("CumProd", since=26)
class CumProd(Op):
    """The running product along an axis; from the end with reverse, without the element with exclusive.

    The gradient does not divide by x, so that it holds where x is 0; it takes memory for the square of the
    axis' extent.
    """

    static_operands = ("axis",)

    exclusive: int = 0
    reverse: int = 0

    def kernel(self, x: Array, axis: Array) -> Array:
        return running(np.multiply, x, axis, bool(self.exclusive), bool(self.reverse))

    def lower(
        self, static: Static, outputs: Values, x: ir.Value, axis: ir.Value
    ) -> requests.Loop | requests.Unsupported:
        return running_loop(static, outputs, x, axis, "mul", self.exclusive, self.reverse)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, x: ir.Value, axis: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        content = constant_of(axis)
        if content is None:
            raise UnsupportedError("the gradient of CumProd needs an axis that is constant in the graph")
        rank = rank_of(x)
        along = normalized(int(content.reshape(-1)[0]), rank)
        zero, one = g.const(0, np.int64), g.const(1, np.int64)
        steps = g.Range(zero, g.Squeeze(g.dim(x, along), [0]), one)
        later = list(range(1, rank - along))
        of = g.Unsqueeze(g.Unsqueeze(steps, [1]), [i + 1 for i in later])  # the element that is varied
        at = g.Unsqueeze(g.Unsqueeze(steps, [0]), [i + 1 for i in later])  # the element of the result
        others = g.Where(g.Equal(of, at), 1.0, g.Unsqueeze(x, [along]))
        products = g.CumProd(
            others, g.const(along + 1, np.int64), exclusive=self.exclusive, reverse=self.reverse
        )
        before, after = (at, of) if self.reverse else (of, at)
        counted = g.Less(before, after) if self.exclusive else g.LessOrEqual(before, after)
        terms = g.Where(counted, g.Mul(g.Unsqueeze(dy, [along]), products), 0.0)
        return g.ReduceSum(terms, [along + 1], keepdims=0), None
