from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values


@op("Reshape", since=(5, 13, 14, 19, 21, 23, 24, 25))
class Reshape(Op):
    """The same elements in another shape: -1 is what remains; 0 is the extent of data there, or 0."""

    static_operands = ("shape",)

    allowzero: int = 0

    def kernel(self, data: Array, shape: Array) -> Array:
        return _reshaped(data, shape.reshape(-1), copy_zeros=not self.allowzero)

    def lower(self, static: Static, outputs: Values, data: ir.Value, *rest: ir.Value | None) -> requests.View:
        return requests.View(outputs[0], data)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, shape: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return g.reshape_like(dy, data), None


@op("Reshape", since=1)
class Reshape1(Op):
    """Reshape to a shape that is an attribute."""

    shape: tuple[int, ...] | None = None

    def canonical(self, g: Builder, data: ir.Value) -> ir.Value:
        if self.shape is None:
            raise InvalidModelError("attribute 'shape' is missing: say which shape data gets")
        return g.Reshape(data, g.const(self.shape, np.int64))


def _reshaped(data: Array, shape: Array, *, copy_zeros: bool) -> Array:
    wanted = [int(n) for n in shape]
    copied = {i for i, n in enumerate(wanted) if n == 0} if copy_zeros else set()
    for i in copied:
        wanted[i] = data.shape[i]
    if -1 in wanted:
        # extents that are copied cancel, so that an empty batch leaves the rest well defined
        have = math.prod(n for i, n in enumerate(data.shape) if i not in copied)
        given = math.prod(n for i, n in enumerate(wanted) if i not in copied and n != -1)
        if given:
            wanted[wanted.index(-1)] = have // given
    return np.reshape(data, wanted)
