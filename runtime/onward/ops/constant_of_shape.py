from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Op, op, requests
from onward.graph.requests import Static, Values


@op("ConstantOfShape", since=(9, 20, 21, 23, 24, 25))
class ConstantOfShape(Op):
    """A tensor of the shape given, filled with one value; float32 zeros by default."""

    static_operands = ("input",)

    value: Array | None = None

    def kernel(self, input: Array) -> Array:
        fill = np.zeros(1, np.float32) if self.value is None else self.value
        return np.full(tuple(int(n) for n in input), fill.reshape(()), fill.dtype)

    def lower(self, static: Static, outputs: Values, input: ir.Value) -> requests.Fill:
        value = np.zeros((), np.float32) if self.value is None else self.value.reshape(())
        return requests.Fill(outputs[0], value)
