from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op


@op("Scatter", since=9)
class Scatter(Op):
    """The former name of ScatterElements."""

    axis: int = 0

    def canonical(self, g: Builder, data: ir.Value, indices: ir.Value, updates: ir.Value) -> ir.Value:
        return g.ScatterElements(data, indices, updates, axis=self.axis)
