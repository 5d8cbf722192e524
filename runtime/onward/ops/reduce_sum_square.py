from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Builder, op
from onward.ops._floats import total
from onward.ops._reduction import AxesAttribute, AxesInput, Compiled

_COMPILED = Compiled("sum", lambda x: x * x)


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return total(data * data, axes, keepdims)


@op("ReduceSumSquare", since=18)
class ReduceSumSquare(AxesInput):
    """The sum of squares over axes."""

    compiled = _COMPILED

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value, axes: ir.Value | None = None
    ) -> tuple[ir.Value | None, ...]:
        return g.Mul(g.Mul(self.spread(g, dy, axes), 2.0), data), None


@op("ReduceSumSquare", since=(1, 11, 13))
class ReduceSumSquareAxesAttribute(AxesAttribute):
    """ReduceSumSquare over axes that are an attribute."""
