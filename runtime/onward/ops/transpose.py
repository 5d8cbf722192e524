from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values


@op("Transpose", since=(1, 13, 21, 23, 24, 25))
class Transpose(Op):
    """Axis i of the output is axis perm[i] of the input; reversed by default."""

    perm: tuple[int, ...] | None = None

    def kernel(self, data: Array) -> Array:
        return np.transpose(data, self.perm)

    def lower(self, static: Static, outputs: Values, data: ir.Value) -> requests.Transpose:
        perm = self.perm if self.perm is not None else range(len(static.shape(data)))[::-1]
        return requests.Transpose(outputs[0], data, tuple(perm))

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value) -> tuple[ir.Value, ...]:
        inverse = None if self.perm is None else [int(i) for i in np.argsort(self.perm)]
        return (g.Transpose(dy, perm=inverse),)
