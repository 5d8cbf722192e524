from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values


@op("Unsqueeze", since=(13, 21, 23, 24, 25))
class Unsqueeze(Op):
    """data with new axes of extent 1 at the places named, counted in the result."""

    static_operands = ("axes",)

    def kernel(self, data: Array, axes: Array) -> Array:
        return np.expand_dims(data, tuple(int(a) for a in axes.reshape(-1)))

    def lower(self, static: Static, outputs: Values, data: ir.Value, *rest: ir.Value | None) -> requests.View:
        return requests.View(outputs[0], data)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return g.Squeeze(dy, axes), None


@op("Unsqueeze", since=(1, 11))
class Unsqueeze1(Op):
    """Unsqueeze whose axes are an attribute."""

    axes: tuple[int, ...]

    def canonical(self, g: Builder, data: ir.Value) -> ir.Value:
        return g.Unsqueeze(data, g.const(self.axes, np.int64))
