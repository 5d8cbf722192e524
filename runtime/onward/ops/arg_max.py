from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._reduction import position_of


@op("ArgMax", since=(1, 11, 12, 13))
class ArgMax(Op):
    """The position of the largest element along an axis: the first, or the last, of equal ones."""

    axis: int = 0
    keepdims: int = 1
    select_last_index: int = 0

    def kernel(self, data: Array) -> Array:
        return position_of(np.argmax, data, self.axis, bool(self.keepdims), bool(self.select_last_index))

    def lower(self, static: Static, outputs: Values, data: ir.Value) -> requests.Position:
        return requests.Position(outputs[0], data, self.axis, "max", last=bool(self.select_last_index))
