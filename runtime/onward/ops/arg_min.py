from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._reduction import position_of


@op("ArgMin", since=(1, 11, 12, 13))
class ArgMin(Op):
    """The position of the smallest element along an axis: the first, or the last, of equal ones."""

    axis: int = 0
    keepdims: int = 1
    select_last_index: int = 0

    def kernel(self, data: Array) -> Array:
        return position_of(np.argmin, data, self.axis, bool(self.keepdims), bool(self.select_last_index))

    def lower(self, static: Static, outputs: Values, data: ir.Value) -> requests.Position:
        return requests.Position(outputs[0], data, self.axis, "min", last=bool(self.select_last_index))
