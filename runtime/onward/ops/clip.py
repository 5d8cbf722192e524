from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Expression, Op, op
from onward.ops._floats import is_integer


@op("Clip", since=(11, 12, 13))
class Clip(Op):
    """output = Min(max, Max(input, min)); the gradient passes inside the closed interval."""

    def kernel(self, input: Array, min: Array | None = None, max: Array | None = None) -> Array:
        if not is_integer(input):
            # an absent limit is the largest finite number: infinities do not pass
            finite = ml_dtypes.finfo(input.dtype)  # type: ignore[no-untyped-call]
            lowest, largest = finite.min, finite.max
            return np.minimum(
                np.maximum(input, lowest if min is None else min), largest if max is None else max
            )
        y = input if min is None else np.maximum(input, min)
        return y if max is None else np.minimum(y, max)

    def element(
        self, input: Expression, min: Expression | None = None, max: Expression | None = None
    ) -> Expression:
        lowest, largest = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
        return input.apply("max", lowest if min is None else min).apply(
            "min", largest if max is None else max
        )

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        input: ir.Value,
        min: ir.Value | None = None,
        max: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        inside = [] if min is None else [g.GreaterOrEqual(input, min)]
        if max is not None:
            inside.append(g.LessOrEqual(input, max))
        if not inside:
            return (dy,)
        return (g.Where(functools.reduce(g.And, inside), dy, 0.0),)


@op("Clip", since=6)
class Clip6(Op):
    """Clip whose limits are attributes: by default the largest finite numbers, as without limits."""

    max: float = 3.4028234663852886e38
    min: float = -3.4028234663852886e38

    def canonical(self, g: Builder, input: ir.Value) -> ir.Value:
        return g.Clip(input, self.min, self.max)


@op("Clip", since=1)
class Clip1(Op):
    """Clip whose limits are attributes."""

    max: float | None = None
    min: float | None = None

    def canonical(self, g: Builder, input: ir.Value) -> ir.Value:
        return g.Clip(input, self.min, self.max)
