from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._shape import constant_of, like


@op("Concat", since=(4, 11, 13))
class Concat(Op):
    """The inputs one behind the other along an axis."""

    axis: int

    def kernel(self, *inputs: Array) -> Array:
        return np.concatenate(inputs, self.axis)

    def lower(self, static: Static, outputs: Values, *inputs: ir.Value) -> requests.Concat:
        return requests.Concat(outputs[0], inputs, self.axis)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, *inputs: ir.Value) -> tuple[ir.Value, ...]:
        extents = [g.dim(x, self.axis) for x in inputs]
        known = [constant_of(extent) for extent in extents]
        if all(extent is not None for extent in known):
            split = g.const([int(extent[0]) for extent in known if extent is not None], np.int64)
        else:
            split = g.Concat(*extents, axis=0)
        parts = g.emit("Split", dy, split, outputs=len(inputs), axis=self.axis)
        return tuple(like(part, x) for part, x in zip(parts, inputs, strict=True))


@op("Concat", since=1)
class Concat1(Op):
    """Concat with an axis by default."""

    axis: int | None = None

    def canonical(self, g: Builder, *inputs: ir.Value) -> ir.Value:
        return g.Concat(*inputs, axis=1 if self.axis is None else self.axis)
