from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values


@op("Squeeze", since=(13, 21, 23, 24, 25))
class Squeeze(Op):
    """data without the axes named, whose extent is 1; without all such axes by default."""

    static_operands = ("axes",)

    def kernel(self, data: Array, axes: Array | None = None) -> Array:
        return np.squeeze(data, None if axes is None else tuple(int(a) for a in axes.reshape(-1)))

    def lower(self, static: Static, outputs: Values, data: ir.Value, *rest: ir.Value | None) -> requests.View:
        return requests.View(outputs[0], data)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        return g.reshape_like(dy, data) if axes is None else g.Unsqueeze(dy, axes), None


@op("Squeeze", since=(1, 11))
class Squeeze1(Op):
    """Squeeze whose axes are an attribute."""

    axes: tuple[int, ...] | None = None

    def canonical(self, g: Builder, data: ir.Value) -> ir.Value:
        return g.Squeeze(data, None if self.axes is None else g.const(self.axes, np.int64))
