from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Expression, Op, dims_of, dtype_of, op


@op("FakeQuantize", domain=ONWARD_DOMAIN, since=1)
class FakeQuantize(Op):
    """Y = clip(round(X / scale), low, high) · scale: what is left of X quantised to integers and back.

    low and high are the range of the integers less the zero point; scale, low and high broadcast against X
    and have its type. `to` is the element type of the integers, `axis` that of scales which are more than
    one. NaN stays, or becomes low with `nan_to_low`, as in QuantizeLinear of the engines.

    The gradient is that of the straight-through estimator (Bengio et al. 2013), clipped: dX = dY where
    round(X / scale) lies within [low, high], both included, and 0 elsewhere, as torch.fake_quantize has it.
    scale, low and high have none: they stay as they were calibrated.
    """

    axis: int = 1
    nan_to_low: int = 0
    to: int

    def kernel(self, X: Array, scale: Array, low: Array, high: Array) -> Array:
        whole = np.rint(X / scale)
        whole = np.maximum(whole, low)
        if self.nan_to_low:
            whole = np.where(np.isnan(whole), low, whole)
        return np.asarray(np.minimum(whole, high) * scale, X.dtype)

    def element(self, X: Expression, scale: Expression, low: Expression, high: Expression) -> Expression:
        whole = (X / scale).apply("round")
        if self.nan_to_low:
            above = whole.apply("ge", low).apply("select", whole, low)
        else:
            above = whole.apply("max", low)
        return above.apply("min", high) * scale

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        X: ir.Value,
        scale: ir.Value,
        low: ir.Value,
        high: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        whole = g.Round(g.Div(X, scale))
        inside = g.And(g.GreaterOrEqual(whole, low), g.LessOrEqual(whole, high))
        return g.Where(inside, dy, 0.0), None, None, None

    def infer(
        self, X: ir.Value, scale: ir.Value, low: ir.Value, high: ir.Value
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(dtype_of(X), dims_of(X))]

    def expand(self, g: Builder, X: ir.Value, scale: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
        whole = g.Max(g.Round(g.Div(X, scale)), low)
        if self.nan_to_low:
            whole = g.Where(g.IsNaN(whole), low, whole)
        return g.Mul(g.Min(whole, high), scale)
